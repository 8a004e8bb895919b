"""The composition root: the only module that names concrete classes.

`python -m octoserve.app` is a worker: its `WorkerConfig` comes as JSON on standard input. `... queue FD` is a
worker of a queue.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import socket

    from octoserve.connectors.queues.address import Address
    from octoserve.connectors.queues.answers import SqlAnswers
    from octoserve.connectors.queues.protocol import Publisher
    from octoserve.control.rollout.values import Course
    from octoserve.core.trace_context import Tracing
    from octoserve.in_process import Endpoint
    from octoserve.patterns.batch.engine import Engine
    from octoserve.patterns.batch.job import Job
    from octoserve.patterns.batch.matching import Matched
    from octoserve.patterns.batch.outcome import Outcome
    from octoserve.patterns.batch.progress import Progress
    from octoserve.patterns.batch.run import Tools
    from octoserve.patterns.message_queue.consumers import Consumers
    from octoserve.patterns.message_queue.opening import Kinds
    from octoserve.patterns.message_queue.settings import QueueSettings, WorkerConfig
    from octoserve.patterns.online.http.async_door import Way
    from octoserve.patterns.online.settings import AsyncRequests
    from octoserve.patterns.online.supervisor.supervisor import Supervisor
    from octoserve.repository.layout import Formats
    from octoserve.runtimes.protocol import Runtime
    from octoserve.spec import BatchSection, RolloutSection, ServeSettings
    from octoserve.telemetry.tracing import Tracer


def runtimes(trust: Sequence[str] | None = None) -> dict[str, Runtime]:
    """Every runtime by its name: ours, and those that other packages bring.

    trust: what the repository's versions may bring beyond data, see docs/runtimes.md#trust; unset: OCTOSERVE_TRUST
    """
    if trust is None:
        trust = [name.strip() for name in os.environ.get("OCTOSERVE_TRUST", "").split(",")]
    from octoserve.runtimes.ensemble import EnsembleRuntime
    from octoserve.runtimes.found import found
    from octoserve.runtimes.lightgbm import LightGBMRuntime
    from octoserve.runtimes.onnx import OnnxRuntime
    from octoserve.runtimes.python import CODE, PythonRuntime
    from octoserve.runtimes.remote import RemoteRuntime
    from octoserve.runtimes.sklearn import SklearnRuntime
    from octoserve.runtimes.xgboost import XGBoostRuntime

    ours: tuple[Runtime, ...] = (
        OnnxRuntime(),
        XGBoostRuntime(),
        LightGBMRuntime(),
        SklearnRuntime(trust),
        PythonRuntime(CODE in trust),
        RemoteRuntime(),
        EnsembleRuntime(),
    )
    by_name = {runtime.name: runtime for runtime in ours}
    return {**by_name, **found(by_name)}


def formats() -> Formats:
    """What versions are made of here."""
    from importlib import metadata

    from octoserve.core.names import RUNTIMES
    from octoserve.repository.layout import OURS, Formats

    if not metadata.entry_points(group=RUNTIMES):
        return OURS
    from octoserve.runtimes.protocol import artifacts_of

    known = runtimes()
    return Formats(artifacts_of(known.values()), tuple(known))


def strategies() -> dict[str, Callable[[RolloutSection], Course]]:
    """What makes a rollout's course from the spec, by the strategy's name."""
    from octoserve.patterns import blue_green, canary
    from octoserve.patterns.shadow import course as shadow

    return {"blue-green": blue_green.course, "canary": canary.course, "shadow": shadow.course}


def serve(
    settings: ServeSettings,
    on_ready: Callable[[Supervisor], None] | None = None,
    spare: Sequence[subprocess.Popen[bytes]] = (),
) -> int:
    """Run a supervisor and its workers until they are told to stop; the exit code. Raises SettingsError.

    on_ready: called once the ports are known and the first versions have loaded or failed
    spare:    worker processes that were started ahead
    """
    from octoserve.patterns.online.supervisor.supervisor import serve as run_supervisor
    from octoserve.patterns.shadow.keeper import PairKeeper

    if settings.spans() is not None:
        from octoserve.telemetry import otlp

        otlp.check()
    return run_supervisor(settings, on_ready, spare, strategies(), PairKeeper, formats(), consumers(settings))


def consumers(settings: ServeSettings) -> Consumers | None:
    """What answers the asynchronous requests of a service; None where it takes none. Raises SettingsError."""
    from octoserve.patterns.online.supervisor.consumers import async_requests

    requests, section = async_requests(settings), settings.asynchronous
    if requests is None:
        return None
    import contextlib

    from octoserve.connectors.queues.answer_topic import AnswerTopic
    from octoserve.connectors.queues.answers import TOPIC, Answer
    from octoserve.connectors.queues.callback import tell
    from octoserve.core.errors import SettingsError, Unavailable
    from octoserve.origins.opening import root_here
    from octoserve.patterns.message_queue.consumers import Consumers
    from octoserve.patterns.message_queue.keeper import Keeper
    from octoserve.patterns.message_queue.settings import REQUESTS, QueueSettings

    repository = str(root_here(settings.repository, settings.cache_folder()))

    def settings_of(model: str, version: int) -> QueueSettings:
        return QueueSettings(
            repository=repository,
            model=model,
            version=version,
            source=requests.source_of(model),
            sink=requests.store,
            payload=REQUESTS,
            batch_rows=section.batch_rows,
            run_timeout=section.run_timeout,
            max_attempts=section.max_attempts,
            retry_delay=section.retry_delay,
            redeliver_after=section.redeliver_after,
            state_dir=requests.state_dir,
            trust=tuple(settings.trust),
            inputs=requests.inputs,
            max_input=section.max_input,
            tracing=settings.spans(),
        )

    way = async_way(requests)
    topic = None
    if requests.results:
        if requests.results in map(requests.source_of, requests.models):
            raise SettingsError("async.results: another topic than async.source is wanted: answers are no requests")
        topic = AnswerTopic(results := publisher_at(requests.results, "async.results", requests.state_dir))
        results.check()
    for publisher in way.publishers.values():
        publisher.check()
    with contextlib.suppress(Unavailable):  # it may come later; what cannot be used is said now
        way.store.prepare()

    def told(answer: Answer) -> bool:
        return topic.tell(answer) if topic is not None and answer.callback == TOPIC else tell(answer)

    keeper = Keeper(
        way.store, section.keep, told if requests.callbacks or topic is not None else None,
        ended=topic.close if topic is not None else lambda: None,
    )  # fmt: skip
    return Consumers(
        requests.models,
        settings_of,
        section.workers,
        spawn_queue_worker,
        keeper,
        log_level=settings.log_level,
        log_format=settings.log_format,
    )


def async_way(requests: AsyncRequests) -> Way:
    """Where asynchronous requests go, and their answers come from. Connects to nothing yet. Raises SettingsError."""
    from octoserve.connectors.queues.address import parse
    from octoserve.core.errors import SettingsError
    from octoserve.patterns.online.http.async_door import Way

    def publisher(model: str) -> Publisher:
        return publisher_at(requests.source_of(model), "async.source", requests.state_dir)

    address = parse(requests.store, "async.store")
    known = queue_kinds(requests.state_dir).answers
    if address.scheme not in known:
        raise SettingsError(f"async.store: unknown kind {address.scheme!r}; known: {', '.join(known)}")
    return Way({model: publisher(model) for model in requests.models}, known[address.scheme](address))


def publisher_at(text: str, setting: str, state_dir: str) -> Publisher:
    """Who puts messages into the queue at this address. Connects to nothing yet. Raises SettingsError."""
    from octoserve.connectors.queues.address import parse
    from octoserve.connectors.queues.kafka_publisher import KafkaPublisher
    from octoserve.connectors.queues.nats_publisher import NatsPublisher
    from octoserve.connectors.queues.nats_wire import where_of
    from octoserve.core.errors import SettingsError

    address = parse(text, setting)
    if address.scheme == "kafka":
        return KafkaPublisher(address)
    if address.scheme not in ("embedded", "nats"):
        raise SettingsError(f"{setting}: unknown kind {address.scheme!r}; known: embedded, nats, kafka")
    return NatsPublisher(where_of(address, Path(state_dir)), setting=setting)


def batch_tools(*, trust: Sequence[str] | None = None, **others: Any) -> Tools:
    """What a batch job runs with; see `runtimes` for trust, `patterns.batch.run.Tools` for the others."""
    from octoserve.patterns.batch.run import Tools
    from octoserve.runtimes.found import library_of

    known = runtimes(trust)
    return Tools(known, {name: library_of(runtime) for name, runtime in known.items()}, **others)


def batch_engine(section: BatchSection, trust: Sequence[str] | None = None) -> Engine | None:
    """What the section asks for; None is the local one. Raises SettingsError."""
    from octoserve.core.errors import SettingsError

    if section.engine == "local":
        return None
    if section.workers is not None:
        raise SettingsError("workers: on Spark its tasks are the workers; set spark.executor.cores and its like there")
    from octoserve.patterns.batch.spark.engine import SparkEngine
    from octoserve.patterns.batch.spark.session import SparkSettings

    settings = SparkSettings(master=section.spark_master or "", remote=section.spark_remote or "")
    return SparkEngine(settings, batch_tools if trust is None else partial(batch_tools, trust=tuple(trust)))


def batch(
    repository: str | os.PathLike[str],
    model: str,
    source: str | Sequence[str],
    sink: str | os.PathLike[str],
    *,
    on_begin: Callable[[Job, Matched, Progress], None] | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> Outcome:
    """See `octoserve.batch`."""
    from rich.console import Console

    from octoserve.patterns.batch.asking import run_of, wish_of
    from octoserve.patterns.batch.run import run
    from octoserve.patterns.batch.showing import Shown, somebody_looks
    from octoserve.spec import check

    section = {"model": model, "source": source, "sink": str(sink), **settings}
    checked = check({"repository": str(repository), "batch": section}, {}).batch

    def begin(job: Job, matched: Matched, how_far: Progress) -> None:
        if on_begin is not None:
            on_begin(job, matched, how_far)
        if somebody_looks() if progress is None else progress:
            shown.begin(how_far)

    with Shown(Console(stderr=True)) as shown:
        tools = batch_tools(engine=batch_engine(checked), on_begin=begin)
        return run(wish_of(checked, str(repository)), run_of(checked), tools)


def load(
    path: str | os.PathLike[str],
    version: int | None = None,
    *,
    columns: Sequence[str] = (),
    missing: str = "",
    trust: Sequence[str] | None = None,
) -> Endpoint:
    """See `octoserve.load`."""
    from octoserve.core.errors import SettingsError
    from octoserve.core.names import is_elsewhere
    from octoserve.in_process import Endpoint
    from octoserve.patterns.batch.model import Version

    if missing not in ("", "nan", "refuse"):
        raise SettingsError(f"missing: nan or refuse wanted, {missing!r} came")
    if isinstance(trust, str):
        raise SettingsError(f"trust: a list of names wanted, {trust!r} came")
    repository, _, name = (str(path) if is_elsewhere(path) else os.path.normpath(path)).rstrip("/").rpartition("/")
    if version is None and name.isdecimal() and repository:
        version = int(name)
        repository, _, name = repository.rpartition("/")
    root = repository or ("/" if os.path.isabs(path) else ".")
    return Endpoint(Version(root, name, version, runtimes(trust), {}), columns, missing)


def queue_kinds(state_dir: str | os.PathLike[str] = ".octoserve", trust: Sequence[str] | None = None) -> Kinds:
    """Every source and sink of a queue, by the scheme of its address. state_dir: where an embedded sink's broker is."""
    from octoserve.connectors.queues.answer_databases import postgres_answers, sqlite_answers
    from octoserve.connectors.queues.kafka import KafkaSource, kafka_source
    from octoserve.connectors.queues.kafka_sink import KafkaSink, kafka_sink
    from octoserve.connectors.queues.kafka_tools import KafkaTools
    from octoserve.connectors.queues.kafka_wire import Outbox
    from octoserve.connectors.queues.nats import NatsSource
    from octoserve.connectors.queues.nats_sink import NatsSink
    from octoserve.connectors.queues.nats_tools import NatsTools
    from octoserve.connectors.queues.nats_wire import where_of
    from octoserve.connectors.queues.parquet_files import parquet_folder
    from octoserve.connectors.queues.postgres import PostgresSink, database_url, postgres_sink
    from octoserve.connectors.queues.sqlite import sqlite_sink
    from octoserve.connectors.queues.webhook import Webhook
    from octoserve.control.postgres import Server
    from octoserve.patterns.message_queue.opening import Kinds
    from octoserve.patterns.message_queue.postgres_ledger import PostgresLedger

    def nats(address: Address, settings: QueueSettings) -> NatsSource:
        return NatsSource(where_of(address, Path(settings.state_dir), settings.redeliver_after))

    def nats_tools(address: Address, state_dir: Path) -> NatsTools:
        return NatsTools(where_of(address, state_dir))

    def nats_results(address: Address) -> NatsSink:
        return NatsSink(where_of(address, Path(state_dir)), address.parameters.get("prefix", ""))

    outbox = Outbox()  # between a source and a sink of Kafka: what one sends is in the other's transaction

    def kafka(address: Address, settings: QueueSettings) -> KafkaSource:
        return kafka_source(
            address, settings.max_attempts, settings.redeliver_after, settings.run_timeout, outbox, settings.worker
        )

    def kafka_tools(address: Address, state_dir: Path) -> KafkaTools:
        return KafkaTools(address)

    def kafka_results(address: Address) -> KafkaSink:
        return kafka_sink(address, outbox)

    def server(address: Address) -> Server:
        return Server(database_url(address), "sink")

    def postgres(address: Address) -> PostgresSink:
        return postgres_sink(address, server(address))

    def ledger(address: Address, source: str, owner: str, ends: Mapping[str, str]) -> PostgresLedger:
        return PostgresLedger(server(address), source, owner, ends)

    def answers(address: Address) -> SqlAnswers:
        return postgres_answers(address, server(address))

    return Kinds(
        runtimes=runtimes(trust),
        sources={"embedded": nats, "nats": nats, "kafka": kafka},
        tools={"embedded": nats_tools, "nats": nats_tools, "kafka": kafka_tools},
        sinks={
            "sqlite": sqlite_sink,
            "postgresql": postgres,
            "postgres": postgres,
            "kafka": kafka_results,
            "nats": nats_results,
            "embedded": nats_results,
            "parquet": parquet_folder,
            "https": Webhook,
            "http": Webhook,
        },
        ledgers={"postgresql": ledger, "postgres": ledger},
        answers={"sqlite": sqlite_answers, "postgresql": answers, "postgres": answers},
    )


def tracer_of(tracing: Tracing | None, process: str) -> Tracer | None:
    """What begins the spans of this process; None, and nothing imported, where none are recorded."""
    if tracing is None:
        return None
    from octoserve.telemetry import otlp

    return otlp.tracer_of(tracing, process)


def spawn_queue_worker(config: WorkerConfig, link: socket.socket) -> subprocess.Popen[bytes]:
    """A worker of a queue, told what to do."""
    import msgspec

    process = subprocess.Popen(
        [sys.executable, "-m", "octoserve.app", "queue", str(link.fileno())],
        stdin=subprocess.PIPE,
        pass_fds=[link.fileno()],
        start_new_session=True,  # Ctrl-C is the supervisor's; it tells its workers
    )
    assert process.stdin is not None
    try:
        process.stdin.write(msgspec.json.encode(config))
        process.stdin.close()
    except BrokenPipeError:
        pass  # it is dead already, and will be found so
    return process


def queue_worker(link: int) -> NoReturn:
    """Run one worker of a queue, told what to do on standard input; `link`: the socket to its supervisor."""
    import socket

    import msgspec

    from octoserve.patterns.message_queue.settings import WorkerConfig
    from octoserve.patterns.message_queue.worker import run_worker
    from octoserve.telemetry.logs import set_up

    config = msgspec.json.decode(sys.stdin.buffer.read(), type=WorkerConfig)
    write_logs = set_up(config.log_level, config.log_format, f"worker {config.index}")
    kinds = queue_kinds(config.settings.state_dir, config.settings.trust)
    tracer = tracer_of(config.settings.tracing, f"queue worker {config.index}")
    code = run_worker(config, kinds, socket.socket(fileno=link), tracer)
    write_logs()
    os._exit(code)  # not waiting for a run that hangs


def score(
    frame: Any,
    repository: str | os.PathLike[str],
    model: str,
    *,
    version: int | None = None,
    keys: Sequence[str] = (),
    bad_rows: str = "refuse",
    **settings: Any,
) -> Any:
    """See `octoserve.score`."""
    from octoserve.patterns.batch.asking import job_settings
    from octoserve.patterns.batch.spark.frame import score as score_frame
    from octoserve.spec import check

    section = check({"repository": str(repository), "batch": {"keys": list(keys), **settings}}, {}).batch
    return score_frame(frame, str(repository), model, version, job_settings(section), bad_rows, batch_tools)


def worker() -> NoReturn:
    """Run one worker until it has drained, and leave at once: the interpreter would wait for runs of a model
    that no client waits for any more."""
    import msgspec
    import onnxruntime  # noqa: F401 - the slowest import, while the supervisor still reads its settings

    from octoserve.patterns.online.settings import WorkerConfig
    from octoserve.patterns.online.worker import run_worker
    from octoserve.telemetry.logs import set_up

    told = sys.stdin.buffer.read()
    if not told:  # started ahead by a supervisor that ended before it knew what to do
        os._exit(0)
    config = msgspec.json.decode(told, type=WorkerConfig)
    write_logs = set_up(config.log_level, config.log_format, f"worker {config.index}")
    tracer = tracer_of(config.tracing, f"worker {config.index}")
    code = run_worker(config, runtimes(config.trust), async_way, tracer)
    write_logs()
    os._exit(code)


if __name__ == "__main__":
    if sys.argv[1:2] == ["queue"]:
        queue_worker(int(sys.argv[2]))
    worker()
