"""Keeps pairs while a service runs: out of the workers' spools into the store, and what people ask of them."""

from __future__ import annotations

import asyncio
import io
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from octoserve.core.errors import InvalidInput, NotFound
from octoserve.telemetry.pairs import SHADOW
from octoserve.telemetry.spool import recover, segments

if TYPE_CHECKING:
    from octoserve.control.analysis.verdict import Verdict
    from octoserve.control.report.report import Report
    from octoserve.core.evidence import Stratum
    from octoserve.core.tensors import Tensor

log = logging.getLogger(__name__)

EVERY = 2.0
"""Seconds between two looks into the spool."""
RETAIN_EVERY = 3600.0
RETAIN_DAYS = 30
RETAIN_BYTES = 10 << 30
TEXT_WIDTH = 100
FORMS = ("json", "html", "text")


class PairKeeper:
    """See the module. folder: `<state>/shadow`."""

    def __init__(self, state_dir: Path, now: Callable[[], float] = time.time) -> None:
        self._folder = state_dir / "shadow"
        self._now = now
        self._complaint = ""
        self._busy = asyncio.Lock()

    async def run(self) -> None:
        """Convert what is whole, again and again; drop what is too old. Ends by cancellation."""
        retain_at = 0.0
        while True:
            try:
                if self._waiting():
                    await self.convert()
                if self._now() >= retain_at and (self._folder / "pairs").exists():
                    retain_at = self._now() + RETAIN_EVERY
                    await asyncio.to_thread(self._retain)
            except Exception as error:
                self._complain(str(error))
            await asyncio.sleep(EVERY)

    def _waiting(self) -> bool:
        spool = self._folder / "spool"
        return spool.exists() and any(spool.iterdir())

    async def convert(self) -> None:
        """Move everything that is whole, and what dead workers left, into the store."""
        async with self._busy:
            await asyncio.to_thread(self._convert)

    def _convert(self) -> None:
        from octoserve.patterns.shadow.store import PairStore  # brings pyarrow, which only a shadow needs

        spool = self._folder / "spool"
        if not spool.exists():
            return
        recover(spool)
        if segments(spool):
            done = PairStore(self._folder).convert()
            if done.error:
                self._complain(done.error)

    def _retain(self) -> None:
        from octoserve.patterns.shadow.store import PairStore

        dropped = PairStore(self._folder).retain(RETAIN_DAYS, RETAIN_BYTES, self._now())
        if dropped.files:
            log.info("pairs: %d of the oldest were dropped, %d bytes", dropped.pairs, dropped.bytes)

    def _complain(self, why: str) -> None:
        if why != self._complaint:
            self._complaint = why
            log.error("pairs stay in the spool: %s", why)

    def recorded(self, endpoint: str, count: int) -> Sequence[Sequence[Tensor]]:
        """The inputs of the last recorded requests whose tensors were kept; fewer where there are fewer. Blocking."""
        from octoserve.control.report.pair import Stored
        from octoserve.patterns.shadow import parquet
        from octoserve.patterns.shadow.store import PairStore, Query

        self._convert()
        found: list[Sequence[Tensor]] = []
        for path in reversed(PairStore(self._folder).files(Query(endpoint=endpoint))):
            pairs = [p for p in parquet.read(path, Stored) if p.kind == SHADOW and p.raw is not None]
            for pair in pairs[max(0, len(pairs) - (count - len(found))) :]:
                found.append([raw.tensor() for raw in parquet.tensors_of(pair.raw or b"")[0]])
            if len(found) >= count:
                break
        return found

    async def report(
        self, endpoint: str, rollout: str, evidence: Sequence[Stratum], verdicts: Sequence[Verdict], form: str
    ) -> tuple[str | bytes, str]:
        """A rollout's comparison of predictions, and its content type. Raises NotFound, InvalidInput."""
        if form not in FORMS:
            raise InvalidInput(f"format: {', '.join(FORMS)} wanted, {form!r} came")
        await self.convert()
        return await asyncio.to_thread(self._report, endpoint, rollout, evidence, verdicts, form)

    def _report(
        self, endpoint: str, rollout: str, evidence: Sequence[Stratum], verdicts: Sequence[Verdict], form: str
    ) -> tuple[str | bytes, str]:
        from octoserve.control.report.report import as_json
        from octoserve.patterns.shadow.build import build
        from octoserve.patterns.shadow.store import PairStore, Query

        store = PairStore(self._folder)
        if not store.files(Query(endpoint=endpoint, rollout=rollout)):
            raise NotFound(f"rollout {rollout} has no pairs: nothing was mirrored, or nothing is stored yet")
        made = build(store, endpoint, rollout, now=self._now(), evidence=evidence, verdicts=verdicts)
        if form == "json":
            return msgspec.json.encode(as_json(made)), "application/json"
        if form == "html":
            from octoserve.control.report.html import as_html

            return as_html(made), "text/html; charset=utf-8"
        return _text(made), "text/plain; charset=utf-8"


def _text(report: Report) -> str:
    from rich.console import Console

    from octoserve.control.report.text import as_text

    page = io.StringIO()
    Console(file=page, width=TEXT_WIDTH, no_color=True).print(as_text(report))
    return "".join(f"{line.rstrip()}\n" for line in page.getvalue().splitlines())
