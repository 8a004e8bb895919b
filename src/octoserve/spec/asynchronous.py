"""The section `async` of `octoserve.yaml`: models whose answers may be fetched later, and how they are scored."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from octoserve.spec.batch import Words
from octoserve.spec.values import Duration, Rows, Section, Size

MODEL = "{model}"


class AsyncSection(Section):
    """Requests that are answered later: POST /v2/models/NAME/infer-async. See docs/async.md."""

    models: Words = Field(default_factory=list)
    """Models that take such requests; none, unless they are named."""
    source: str = Field(default=f"embedded:async-{MODEL}", repr=False)
    """The queue between door and consumers, an address as of `queue.source`; {model} stands for the model's name."""
    store: str | None = Field(default=None, repr=False)
    """Where answers are kept: sqlite:///path.db?table=t, or postgresql://user@host/db?table=t; unset: async.db in the
    state directory."""
    workers: Annotated[int, Field(ge=0, le=256)] = 1
    """Processes that score, of each model; 0 leaves it to `octoserve queue run --payload requests`."""
    keep: Annotated[Duration, Field(ge=1)] = 86400.0
    """How long an answer, or why there is none, is kept; then its id is unknown."""
    callbacks: Words = Field(default_factory=list)
    """Beginnings of addresses that X-Octoserve-Callback may name, such as https://hooks.example.com/octoserve/."""
    results: str | None = Field(default=None, repr=False)
    """A topic or stream that is told of each request that is done or has failed, unless it named a callback:
    kafka://host:9092/topic, nats://host:4222/stream, embedded:NAME."""
    inputs: Words = Field(default_factory=list)
    """Beginnings of addresses that input_location may name, such as s3://bucket/requests/."""
    max_input: Size = 1 << 30
    """Bytes of an object that input_location names."""
    max_pending: Annotated[int, Field(ge=1)] = 256
    """Requests of one worker's door that wait for the queue to take them; one more is answered 429."""
    batch_rows: Rows = 1024
    """Requests in a micro-batch at most."""
    run_timeout: Duration = 300.0
    """A run of the model that takes longer is ended, with its process, and counts as an attempt."""
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    """After which a request has failed."""
    retry_delay: Duration = 1.0
    """Before the second attempt; doubled before each further one."""
    redeliver_after: Annotated[Duration, Field(ge=1)] = 10.0
    """After which requests of a process that is gone come to another."""
