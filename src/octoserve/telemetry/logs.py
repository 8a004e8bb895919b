"""Logs: one line an event on standard error, as text or JSON. No line is written for a request that went well.

Records go through a queue to a thread, so that a slow terminal or a full pipe never holds up the event loop;
when the queue is full a record is dropped and counted, not waited for.
"""

from __future__ import annotations

import atexit
import copy
import json
import logging
import logging.handlers
import queue
import sys
import time
from collections.abc import Callable
from typing import TextIO

from octoserve.telemetry.tracing import ACTIVE, Span

_QUEUE = 10_000
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC, ISO 8601), level, logger, message, extra fields, error."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({k: v for k, v in vars(record).items() if k not in _STANDARD})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class DroppingHandler(logging.handlers.QueueHandler):
    """Queues records; drops and counts them when the queue is full."""

    dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Only the arguments are merged here, and what this thread works on; the traceback is left for the thread and
        its formatter."""
        record = copy.copy(record)
        span = ACTIVE.get()
        if isinstance(span, Span):
            record.trace_id, record.span_id = f"{span.trace:032x}", f"{span.id:016x}"
        record.msg = record.message = record.getMessage()
        record.args = None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """See `logging.handlers.QueueHandler.enqueue`."""
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            type(self).dropped += 1


def set_up(
    level: str = "info", format: str = "text", process: str = "", stream: TextIO | None = None
) -> Callable[[], None]:
    """Log from here on; gives what writes out the records that wait, for a process that ends by `os._exit`.

    format:  "text" or "json"
    process: who speaks, e.g. `worker 0`
    """
    writer = logging.StreamHandler(stream or sys.stderr)
    if format == "json":
        writer.setFormatter(JsonFormatter())
    else:
        name = f"{process}: " if process else ""
        writer.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {name}%(message)s", "%H:%M:%S"))
    records: queue.Queue[logging.LogRecord] = queue.Queue(_QUEUE)
    root = logging.getLogger()
    root.handlers[:] = [DroppingHandler(records)]
    root.setLevel(level.upper())
    listener = logging.handlers.QueueListener(records, writer)
    listener.start()
    atexit.register(listener.stop)
    return listener.stop
