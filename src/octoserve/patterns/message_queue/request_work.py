"""What a worker does whose messages are whole requests: its loop, from the settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from octoserve.connectors import objects
from octoserve.connectors.queues.answers import ANSWER
from octoserve.connectors.queues.protocol import QueueSink, QueueSource
from octoserve.core.errors import InvalidInput, TooLarge
from octoserve.dataplane.deferred import within
from octoserve.patterns.message_queue import opening
from octoserve.patterns.message_queue.answering import RequestModel
from octoserve.patterns.message_queue.ledger import Ledger
from octoserve.patterns.message_queue.loop import Limits, Loop, Work
from octoserve.patterns.message_queue.opening import Kinds
from octoserve.patterns.message_queue.outcome import Policy
from octoserve.patterns.message_queue.requests import Requests
from octoserve.patterns.message_queue.settings import QueueSettings
from octoserve.patterns.message_queue.statistics import Statistics
from octoserve.patterns.message_queue.traced import Traced
from octoserve.patterns.message_queue.waiting import deadline, put_off
from octoserve.telemetry.metrics import Registry
from octoserve.telemetry.tracing import Tracer


def loop_of_requests(
    settings: QueueSettings,
    kinds: Kinds,
    registry: Registry,
    executor: Executor,
    source: QueueSource,
    sink: QueueSink,
    ledger: Ledger,
    owner: str,
    stop: Callable[[], bool],
    beat: Callable[[bool], None],
    tracer: Tracer | None = None,
    traced: Traced | None = None,
) -> Loop:
    """Loads the version. Raises NotFound, BrokenVersion, SettingsError."""
    model = RequestModel(settings, kinds.runtimes, registry, executor, tracer)
    requests = Requests(
        model,
        lambda: deadline(settings.run_timeout),
        lambda: put_off(settings.run_timeout),
        lambda address: fetch(address, settings.inputs, settings.max_input),
    )
    answers = opening.answers(kinds, settings)
    work = Work(
        model=model,
        decode=requests.decode,
        outputs=[ANSWER],
        policy=Policy(settings.max_attempts, settings.retry_delay),
        score=requests.score,
        give_up=answers.fail if answers is not None else lambda letters: None,
    )
    limits = Limits(settings.batch_rows, settings.batch_bytes, settings.batch_seconds, settings.until_idle)
    statistics = Statistics(registry, model.name, time.time, settings.freshness)
    loop = Loop(source, sink, ledger, work, limits, statistics, lane=owner, stop=stop, beat=beat, traced=traced)
    model.tick = loop.keep
    return loop


def fetch(address: str, places: Sequence[str], most: int) -> bytes:
    """An object in one of these places, of so many bytes at most. Raises OctoserveError."""
    if not within(address, places) or not address.startswith("s3://"):
        raise InvalidInput(f"input_location {address!r} is not one that is allowed here")
    name, key = objects.split_url(address)
    bucket = objects.bucket(name)
    size = bucket.head(key).size
    if size > most:
        raise TooLarge(f"{address} has {size} bytes, at most {most} are taken")
    return bucket.get(key)[0]
