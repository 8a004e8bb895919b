"""How a task's answer comes back before the whole Spark job ends: a small file beside what it wrote.

An answer is one JSON document, the same in the file and in the task's row. It says that a split is written, and where;
or why it cannot be, where trying again would not help.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from octoserve.connectors.files import LocalFiles, write_whole
from octoserve.core.errors import NotFound, OctoserveError, SettingsError
from octoserve.patterns.batch.job import BudgetSpent, Difference, Differs, Fenced
from octoserve.patterns.batch.journal import Finished

_ENDING = ".json"


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Of one attempt at one split.

    attempt: the folder that the attempt wrote in
    line:    what the journal shall say, None if it failed
    kind:    how it failed: a key of `_KINDS`
    """

    split: int
    attempt: str
    host: str
    line: Finished | None = None
    kind: str = ""
    text: str = ""
    differences: tuple[Difference, ...] = ()


_KINDS: dict[str, type[OctoserveError]] = {
    "settings": SettingsError, "missing": NotFound, "budget": BudgetSpent, "fenced": Fenced, "failed": OctoserveError,
}  # fmt: skip


def refusal(split: int, attempt: str, host: str, error: OctoserveError) -> Answer:
    """The answer that says what the error says."""
    if isinstance(error, Differs):
        return Answer(
            split=split, attempt=attempt, host=host, kind="differs", text=error.headline, differences=error.differences
        )
    kind = next((name for name, type_ in _KINDS.items() if isinstance(error, type_)), "failed")
    return Answer(split=split, attempt=attempt, host=host, kind=kind, text=str(error))


def error_of(answer: Answer) -> OctoserveError:
    """What a refusal was made of, and where it happened."""
    where = f"executor on {answer.host}"
    if answer.kind == "differs":
        return Differs(f"{where}: {answer.text}", answer.differences)
    return _KINDS[answer.kind](f"{where}: {answer.text}")


def encode(answer: Answer) -> bytes:
    """An answer's bytes."""
    return msgspec.json.encode(answer)


decode = msgspec.json.Decoder(Answer).decode


def post(files: LocalFiles, folder: Path, answer: Answer) -> None:
    """Leave an answer. Raises OSError; FileNotFoundError if the folder is gone."""
    write_whole(files, folder / f"{answer.attempt}{_ENDING}", encode(answer), folder)


def collect(folder: Path, seen: set[str]) -> Iterator[Answer]:
    """Answers that were not `seen` yet; marks them as seen."""
    for name in sorted(os.listdir(folder)):
        if name.endswith(_ENDING) and name not in seen:
            seen.add(name)
            yield decode((folder / name).read_bytes())
