"""Which sink is meant by what somebody wrote."""

from __future__ import annotations

from octoserve.connectors.delta import DeltaSink, is_delta
from octoserve.connectors.files import LocalFiles
from octoserve.connectors.iceberg import PREFIX as ICEBERG
from octoserve.connectors.iceberg import IcebergSink
from octoserve.connectors.objects import bucket
from octoserve.connectors.postgres import SCHEMES, address
from octoserve.core.errors import SettingsError
from octoserve.patterns.batch import databases
from octoserve.patterns.batch.job import JobSettings
from octoserve.patterns.batch.lake_sink import LakeSink
from octoserve.patterns.batch.local import LocalSink
from octoserve.patterns.batch.object_sink import Buckets, ObjectSink
from octoserve.patterns.batch.postgres_sink import PostgresSink
from octoserve.patterns.batch.sinks import Sink


def sink_of(sink: str, files: LocalFiles | None = None, buckets: Buckets = bucket) -> Sink:
    """Raises SettingsError."""
    if sink.startswith(ICEBERG):
        return LakeSink(IcebergSink(sink), files or LocalFiles(), buckets)
    if is_delta(sink):
        return LakeSink(DeltaSink(sink), files or LocalFiles(), buckets)
    scheme, mark, _ = sink.partition("://")
    if not mark:
        return LocalSink(sink, files or LocalFiles())
    if scheme in ("s3", "s3a", "s3n"):
        return ObjectSink(sink, buckets)
    if sink.startswith(SCHEMES):
        return PostgresSink(sink, databases.of("sink"))
    raise SettingsError(
        f"sink: a folder, an s3:// or postgresql:// URL, delta: or iceberg: wanted, {address(sink).shown!r} came"
    )


def refuse_format(sink: Sink, settings: JobSettings) -> None:
    """Raises SettingsError where somebody chose how files are written, and the sink is a table."""
    if settings.sink_format and not isinstance(sink, LocalSink | ObjectSink):
        raise SettingsError(
            f"--sink-format: for a folder, here or in s3://; {sink.name} is a table, which has its own; leave it out"
        )


def shown(sink: str) -> str:
    """The sink as it was written, without secrets."""
    if not sink.startswith(SCHEMES):
        return sink
    said = address(sink)
    return said.url(said.parameters) if said.parameters else said.shown
