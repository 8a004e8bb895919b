"""Logs: one line an event, from a thread of their own, dropped rather than waited for."""

from __future__ import annotations

import io
import json
import logging
import queue
import threading
from collections.abc import Iterator

import pytest

from octoserve.telemetry import logs


@pytest.fixture(autouse=True)
def _own_root() -> Iterator[None]:
    """Puts the root logger back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


class Stream(io.StringIO):
    """Tells when so many lines were written."""

    def __init__(self, lines: int) -> None:
        super().__init__()
        self.done = threading.Event()
        self.left = lines

    def write(self, text: str) -> int:
        size = super().write(text)
        self.left -= text.count("\n") > 0
        if self.left <= 0:
            self.done.set()
        return size

    def lines(self) -> list[str]:
        assert self.done.wait(10)
        return self.getvalue().splitlines()


def test_json_lines() -> None:
    stream = Stream(2)
    logs.set_up("info", "json", "worker 1", stream)
    log = logging.getLogger("octoserve.test")
    log.debug("unheard")
    log.info("loaded %s in %d s", "m", 3, extra={"model": "m", "odd": object})
    try:
        raise ZeroDivisionError("why")
    except ZeroDivisionError:
        log.exception("failed %s", "m")
    first, second = (json.loads(line) for line in stream.lines())
    assert (first["level"], first["logger"], first["message"]) == ("info", "octoserve.test", "loaded m in 3 s")
    assert first["model"] == "m"
    assert "object" in first["odd"]
    assert first["time"].endswith("Z")
    assert (second["level"], second["message"]) == ("error", "failed m")
    assert "ZeroDivisionError: why" in second["error"]
    assert "Traceback" in second["error"]


def test_text_lines() -> None:
    stream = Stream(1)
    logs.set_up("warning", "text", "worker 1", stream)
    logging.getLogger("octoserve.test").info("unheard")
    logging.getLogger("octoserve.test").warning("full: %d%%", 99)
    [line] = stream.lines()
    assert line.endswith("WARNING worker 1: full: 99%")


def test_a_traceback_is_written_once() -> None:
    stream = Stream(1)
    logs.set_up("info", "text", "", stream)
    try:
        raise ZeroDivisionError("why")
    except ZeroDivisionError:
        logging.getLogger("octoserve.test").exception("failed")
    text = "\n".join(stream.lines())
    assert text.count("ZeroDivisionError: why") == 1


def test_what_does_not_fit_the_queue_is_dropped_and_counted() -> None:
    records: queue.Queue[logging.LogRecord] = queue.Queue(2)
    handler = logs.DroppingHandler(records)
    before = logs.DroppingHandler.dropped
    for i in range(5):
        handler.handle(logging.makeLogRecord({"msg": "%d", "args": (i,)}))
    assert [records.get_nowait().getMessage() for _ in range(2)] == ["0", "1"]
    assert logs.DroppingHandler.dropped - before == 3


def test_what_waits_no_longer_depends_on_its_arguments() -> None:
    records: queue.Queue[logging.LogRecord] = queue.Queue()
    state = {"a": 1}
    logs.DroppingHandler(records).handle(logging.makeLogRecord({"msg": "%s", "args": (state,)}))
    state["a"] = 2
    assert records.get_nowait().getMessage() == "{'a': 1}"


def test_a_json_line_is_one_line() -> None:
    record = logging.makeLogRecord({"msg": 'two\nlines "quoted" é', "levelno": 20, "levelname": "INFO"})
    line = logs.JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == 'two\nlines "quoted" é'
