"""What a run returns: the committed sink, for scripts and notebooks."""

from __future__ import annotations

import html
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from octoserve.connectors import arrow
from octoserve.core.errors import SettingsError
from octoserve.patterns.batch.manifest import Manifest
from octoserve.patterns.batch.places import sink_of


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A committed sink. scored: rows of this run, 0 if there was nothing left to do; seconds: it took."""

    sink: str
    manifest: Manifest
    scored: int = 0
    seconds: float = 0.0

    def table(self, columns: Sequence[str] | None = None) -> Any:
        """The predictions as one pyarrow Table, in the source's order. Takes the memory that it takes."""
        return arrow.pyarrow().concat_tables(sink_of(self.sink).tables(self.manifest, False, columns))

    def to_pandas(self, columns: Sequence[str] | None = None) -> Any:
        """The same as a pandas DataFrame; fixed lists become arrays. Raises SettingsError without pandas."""
        try:
            import pandas  # type: ignore[import-untyped]  # noqa: F401
        except ImportError:
            raise SettingsError("to_pandas() needs pandas, which is not installed: pip install pandas") from None
        return self.table(columns).to_pandas()

    def bad_rows(self) -> Any:
        """The bad rows as one pyarrow Table, or None if there are none."""
        if not self.manifest.bad:
            return None
        return arrow.pyarrow().concat_tables(sink_of(self.sink).tables(self.manifest, True, None))

    def report(
        self, segments: Sequence[str] = (), tolerance: Mapping[str, Mapping[str, float]] | None = None, worst: int = 10
    ) -> Any:
        """What the shadow would have changed: a `control.report.report.Report`, which a notebook shows as a page.

        Raises SettingsError if there is no shadow.
        """
        from octoserve.patterns.batch.comparing import compared

        chosen = tolerance or {}
        return compared(self.sink, now=time.time(), segments=segments, tolerance_of=lambda model: chosen, worst=worst)

    def __repr__(self) -> str:
        return f"<Outcome {', '.join(f'{name} {value}' for name, value in self._facts())}>"

    def _repr_html_(self) -> str:
        cells = "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in self._facts())
        return f"<table>{cells}</table>"

    def _facts(self) -> list[tuple[str, str]]:
        whole = self.manifest
        found = [("sink", self.sink), ("model", f"{whole.model.name} version {whole.model.version}")]
        routing = whole.routing
        if not isinstance(routing, msgspec.UnsetType):
            if routing.plan is not None:
                found.append(("by the route plan", ", ".join(str(v) for v in sorted(routing.plan.versions()))))
            if routing.shadow is not None:
                found.append(("shadow", f"version {routing.shadow.version}"))
        found += [("rows", f"{whole.rows:,}"), ("bad rows", f"{whole.bad_rows:,}"), ("run", whole.run)]
        did = f"{self.scored:,} in {self.seconds:.1f} s" if self.scored else "nothing, it was done already"
        return [*found, ("scored", did)]
