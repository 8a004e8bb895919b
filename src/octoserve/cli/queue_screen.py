"""What the queue's commands show. Everything goes to standard error but results, so that they can be piped."""

from __future__ import annotations

import base64
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from octoserve.cli.metrics_page import MetricsServer
from octoserve.connectors.queues.protocol import DeadLetter, Lag, Message
from octoserve.telemetry.families import Family

if TYPE_CHECKING:
    from octoserve.patterns.message_queue.cutovers import Cutover
    from octoserve.patterns.message_queue.settings import QueueSettings
    from octoserve.patterns.message_queue.supervisor import Figures

EVERY = 10.0
"""Seconds between lines where there is no terminal."""
_SHOWN = (
    "table", "prefix", "every", "subject", "durable", "group", "create", "protocol", "instance", "transactions",
    "config",
)  # fmt: skip
"""Parameters of our own. Others are libpq's, which has passwords, or belong to who is called, and may be a token."""


_SHOWN_CUTOVERS = 5
"""Of a partition, the newest; all of them as JSON."""


class Screen:
    """Of a run."""

    def __init__(self, settings: QueueSettings, quiet: bool) -> None:
        self._settings = settings
        self._quiet = quiet
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)
        self._began = time.monotonic()
        self._said = self._began
        self._last: Figures | None = None

    def _say(self, text: str) -> None:
        if not self._quiet:
            self._console.print(text)

    def promise(self, promise: str) -> None:
        """Source and sink are known."""
        self._say(f"{without_secrets(self._settings.source)} -> {without_secrets(self._settings.sink)}")
        self._say(f"promise: {promise}")

    def figures(self, figures: Figures) -> None:
        """As it stands; a line now and then, if anything has changed."""
        now = time.monotonic()
        if now - self._said >= EVERY and figures != self._last:
            self._said, self._last = now, figures
            self._say(f"{_counts(figures)}; {figures.behind:,} behind, {figures.in_hand:,} in hand")

    @contextlib.contextmanager
    def metrics(self, host: str, port: int | None, families: Callable[[], list[Family]]) -> Iterator[None]:
        """Serve them, if a port was asked for."""
        if port is None:
            yield
            return
        server = MetricsServer(host, port, families)
        self._say(f"metrics on {server.url}")
        try:
            yield
        finally:
            server.close()

    def end(self, figures: Figures, restarts: int, as_json: bool) -> None:
        """The run is over."""
        seconds = time.monotonic() - self._began
        if as_json:
            import msgspec

            told: dict[str, Any] = {**msgspec.structs.asdict(figures), "restarts": restarts, "seconds": seconds}
            print(json.dumps(told))
            return
        print(f"{_counts(figures)} in {seconds:.1f} s")
        if restarts:
            self._say(f"{restarts:,} times a worker died and was started again; its last second is not counted")
        if figures.dead:
            self._say(f"octoserve queue dlq list {without_secrets(self._settings.source)}")


def _counts(figures: Figures) -> str:
    words = [f"stored {figures.stored:,}"]
    for name in ("repeated", "retried", "dead"):
        if getattr(figures, name):
            words.append(f"{name} {getattr(figures, name):,}")
    return ", ".join(words)


def without_secrets(address: str) -> str:
    """An address without user and password, and without the values of parameters that may be some."""
    scheme, mark, rest = address.partition("://")
    place, question, query = rest.rpartition("@")[2].partition("?")
    if not mark:
        return address
    shown = [pair if pair.partition("=")[0] in _SHOWN else pair.partition("=")[0] + "=..." for pair in query.split("&")]
    return f"{scheme}{mark}{place}{question}{'&'.join(shown) if query else ''}"


class Sending:
    """How far `send` is."""

    def __init__(self, quiet: bool) -> None:
        self._shown = sys.stderr.isatty() and not quiet
        self._console = Console(stderr=True)
        self._status: Any = None

    def __enter__(self) -> Sending:
        if self._shown:
            self._status = self._console.status("sending")
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def sent(self, count: int) -> None:
        """So many are acknowledged."""
        if self._status is not None:
            self._status.update(f"sent {count:,}")


def print_message(message: Message, as_json: bool) -> None:
    """One line."""
    text = _readable(message.value)
    if as_json:
        told = {"position": message.name, "published": _when(message.published), "headers": message.headers, **text}
        print(json.dumps(told), flush=True)
    else:
        print(f"{message.name}  {_when(message.published)}  {next(iter(text.values()))}", flush=True)


def _readable(value: bytes) -> dict[str, str]:
    try:
        return {"payload": value.decode()}
    except UnicodeDecodeError:
        return {"payload_base64": base64.b64encode(value).decode()}


def _when(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def print_lag(lags: Sequence[Lag], cutovers: Sequence[Cutover], as_json: bool) -> None:
    """A line a partition, and one for each of its last cut-overs."""
    now = time.time()
    went = {lag.partition: [each for each in cutovers if each.partition == lag.partition] for lag in lags}
    if as_json:
        print(
            json.dumps(
                [
                    {
                        "partition": lag.partition,
                        "behind": lag.behind,
                        "in_hand": lag.in_hand,
                        "oldest_seconds": None if lag.oldest is None else max(0.0, now - lag.oldest),
                        "scored_by": [
                            {"by": each.by, "from": each.offset, "since": each.at} for each in went[lag.partition]
                        ],
                    }
                    for lag in lags
                ]
            )
        )
        return
    for lag in lags:
        oldest = "" if lag.oldest is None else f", the oldest {max(0.0, now - lag.oldest):.1f} s old"
        where = f"{lag.partition}: " if lag.partition else ""
        print(f"{where}{lag.behind:,} behind, {lag.in_hand:,} in hand{oldest}")
        for each in went[lag.partition][-_SHOWN_CUTOVERS:]:
            at = datetime.fromtimestamp(each.at).astimezone().isoformat(sep=" ", timespec="seconds")
            print(f"  {where}scored by {each.by} from {each.offset} on, since {at}")


def print_letters(letters: Sequence[DeadLetter], source: str, as_json: bool) -> None:
    """A row a message; as JSON with all of its history and its payload."""
    if as_json:
        print(json.dumps([_told(letter) for letter in letters]))
        return
    if not letters:
        print("no dead letters")
        return
    table = Table("message id", "origin", "attempts", "by", "last error", box=None, pad_edge=False)
    for letter in letters:
        last = letter.history[-1] if letter.history else None
        table.add_row(
            letter.id,
            letter.origin,
            str(letter.attempts),
            last.by if last else "",
            last.error if last else "",
        )
    Console(soft_wrap=not sys.stdout.isatty(), highlight=False, markup=False).print(table)
    Console(stderr=True, soft_wrap=True, highlight=False).print(
        f"{len(letters):,} dead letters; send them again: octoserve queue dlq replay {without_secrets(source)}"
    )


def _told(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "origin": letter.origin,
        "attempts": letter.attempts,
        "history": [{"at": _when(f.at), "error": f.error, "by": f.by} for f in letter.history],
        "published": _when(letter.published),
        "buried": _when(letter.buried),
        **_readable(letter.value),
    }
