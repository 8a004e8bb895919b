"""Links in README.md and docs lead somewhere: to a file of the checkout, and to a heading in it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md"), *ROOT.glob("bench/*.md")]
)

_FENCED = re.compile(r"^ *(```|~~~).*?^ *\1 *$", re.M | re.S)
_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.S)
_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_REFERENCE = re.compile(r"^ {0,3}\[[^\]^]+\]:\s*<?(\S+?)>?\s*$", re.M)
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.I)


def links_in(text: str) -> list[str]:
    """Where a page's links and pictures lead, but for those to other places; code is not looked at."""
    prose = _CODE.sub("", _FENCED.sub("", text))
    found = [*_LINK.findall(prose), *_REFERENCE.findall(prose)]
    return [target for target in found if not _ELSEWHERE.match(target)]


def anchors_in(text: str) -> set[str]:
    """A page's headings as GitHub names them: in lower case, spaces to hyphens, no other signs, twins numbered."""
    seen: Counter[str] = Counter()
    names = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#* *$", _FENCED.sub("", text), re.M):
        shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        names.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names


def wrong_in(page: Path) -> list[str]:
    """Links of a page that lead nowhere."""
    wrong = []
    for target in links_in(page.read_text()):
        name, _, anchor = unquote(target).partition("#")
        to = (page.parent / name).resolve() if name else page
        if not to.is_relative_to(ROOT) or not to.exists():
            wrong.append(f"{target}: no such file")
        elif anchor and to.suffix == ".md" and anchor not in anchors_in(to.read_text()):
            wrong.append(f"{target}: no such heading; there are {', '.join(sorted(anchors_in(to.read_text())))}")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert wrong_in(page) == []


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / target.partition("#")[0]).resolve() for target in links_in(index.read_text())}
    pages = {page for page in ROOT.glob("docs/*.md") if page != index}
    assert sorted(page.name for page in pages - linked) == []


def test_what_counts_as_a_link() -> None:
    text = (
        "# One & `two`\n## Same\n## Same\n[a](b.md#x) ![p](i.png) [![c](d.svg)](e.md)\n"
        "[out](https://x.org) `[no](no.md)`\n"
        '```\n# no heading\n[no](no.md)\n```\n[t](f.md "title")\n[r]: g.md\n'
    )
    assert sorted(links_in(text)) == ["b.md#x", "d.svg", "e.md", "f.md", "g.md", "i.png"]
    assert anchors_in(text) == {"one--two", "same", "same-1"}
