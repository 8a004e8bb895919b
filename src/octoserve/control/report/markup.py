"""A report as one HTML file that needs nothing else: no script, no font, no image from elsewhere.

Everything that is not ours is escaped on its way in: text only ever enters the page by `escaped`.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from octoserve.control.report.style import STYLE


def page(
    *, title: str, kicker: str, heading: str, meta: Sequence[str], headline: str, content: str, footer: str
) -> str:
    """A whole page; UTF-8. `meta` and `content` are markup, the others text."""
    said = "\n".join(f'<p class="meta">{line}</p>' for line in meta)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escaped(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<p class="kicker">{escaped(kicker)}</p>
<h1>{escaped(heading)}</h1>
{said}
</header>
<main>
<p class="headline">{escaped(headline)}</p>
{content}
</main>
<footer>
<p>{escaped(footer)}</p>
</footer>
</body>
</html>
"""


def escaped(text: object) -> str:
    """As it may stand in the page."""
    return html.escape(str(text), quote=True)


def section(name: str, title: str, content: str, lead: str = "") -> str:
    """A part with a heading; `content` is markup."""
    said = f'<p class="lead">{escaped(lead)}</p>\n' if lead else ""
    return f'<section aria-labelledby="{name}">\n<h2 id="{name}">{escaped(title)}</h2>\n{said}{content}\n</section>'


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    """A table whose cells are markup already; the columns `words` are text, the others numbers."""
    kinds = ["" if i in words else ' class="n"' for i in range(len(columns))]
    head = "".join(f'<th scope="col"{kind}>{escaped(c)}</th>' for c, kind in zip(columns, kinds, strict=True))
    lines = []
    for cells in rows:
        rest = "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(cells[1:], kinds[1:], strict=True))
        lines.append(f'<tr><th scope="row">{cells[0]}</th>{rest}</tr>')
    return (
        f'<div class="scroll" role="region" aria-label="{escaped(caption)}" tabindex="0"><table>'
        f"<caption>{escaped(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def notes(notes: Sequence[str]) -> str:
    """What one must know to read the numbers rightly; "" for none."""
    items = "".join(f"<li>{escaped(note)}</li>" for note in notes)
    return f'<aside class="notes" aria-label="To read the numbers rightly"><ul>{items}</ul></aside>' if notes else ""


def tiles(cells: Iterable[tuple[str, str, str]]) -> str:
    """What matters first: a name, a value and a remark each."""
    made = "".join(
        f"<div><dt>{escaped(name)}</dt><dd><strong>{escaped(value)}</strong> <span>{escaped(said)}</span></dd></div>"
        for name, value, said in cells
    )
    return f'<dl class="tiles">{made}</dl>'


def bar(part: float, top: float, text: str) -> str:
    """A bar as long as `part` is of `top`, and what it stands for."""
    width = 100 * part / top if part and top else 0.0
    return f'<span class="bar"><i style="width:{width:.1f}%"></i></span><span class="value">{escaped(text)}</span>'
