"""The embedded broker: one for all who use it, started by the first and stopped by the last, whoever is killed."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from octoserve.app import queue_kinds
from octoserve.connectors.queues import nats_wire
from octoserve.connectors.queues.nats_server import MAX_PAYLOAD, EmbeddedBroker, greeting
from octoserve.connectors.queues.protocol import DeadLetter, Failure, Message
from octoserve.core.errors import InvalidInput, SettingsError
from octoserve.patterns.message_queue import opening
from octoserve.patterns.message_queue.settings import QueueSettings
from support.queues import in_thread, opened, polled
from support.supervised import until


@pytest.fixture
def state_dir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    last = EmbeddedBroker(tmp_path)
    if last.folder.exists():
        last.join()
        last.leave()


def address(state_dir: Path) -> Any:
    return json.loads((state_dir / "broker" / "address.json").read_text())


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def test_it_runs_while_somebody_uses_it(state_dir: Path):
    one, two = EmbeddedBroker(state_dir), EmbeddedBroker(state_dir)
    url = one.join()
    assert two.join() == one.join() == url
    one.leave()
    assert greeting(port_of(url))["jetstream"] is True
    two.leave()
    two.leave()
    assert greeting(port_of(url)) == {}
    three = EmbeddedBroker(state_dir)
    assert three.join() == url, "the same port and the same token, if they can be had"
    three.leave()


def test_of_many_that_begin_at_once_one_starts_it(state_dir: Path):
    brokers = [EmbeddedBroker(state_dir) for _ in range(6)]
    urls: list[str] = []
    threads = [in_thread(lambda broker=broker: urls.append(broker.join())) for broker in brokers]  # type: ignore[misc]
    for thread in threads:
        thread.join(60)
    assert len(urls) == 6
    assert len(set(urls)) == 1
    for broker in brokers:
        broker.leave()
    assert greeting(port_of(urls[0])) == {}


def test_who_is_killed_leaves_it_and_the_next_takes_it_over(state_dir: Path):
    program = (
        "import sys, time; from pathlib import Path\n"
        "from octoserve.connectors.queues.nats_server import EmbeddedBroker\n"
        "print(EmbeddedBroker(Path(sys.argv[1])).join(), flush=True); time.sleep(60)"
    )
    user = subprocess.Popen([sys.executable, "-c", program, str(state_dir)], stdout=subprocess.PIPE, text=True)
    assert user.stdout is not None
    url = user.stdout.readline().strip()
    user.kill()
    user.wait()
    user.stdout.close()
    pid = address(state_dir)["pid"]
    next_ = EmbeddedBroker(state_dir)
    assert next_.join() == url
    assert address(state_dir)["pid"] == pid
    next_.leave()
    assert greeting(port_of(url)) == {}


def test_one_that_died_is_started_at_its_port(state_dir: Path):
    broker = EmbeddedBroker(state_dir)
    url = broker.join()
    os.kill(address(state_dir)["pid"], signal.SIGKILL)
    until(lambda: greeting(port_of(url)) == {})
    assert broker.join() == url
    assert greeting(port_of(url))["server_name"] == address(state_dir)["name"]
    broker.leave()


def test_another_server_at_its_port_is_not_taken_for_it(state_dir: Path, tmp_path_factory: pytest.TempPathFactory):
    broker, other = EmbeddedBroker(state_dir), EmbeddedBroker(tmp_path_factory.mktemp("other"))
    broker.join()
    broker.leave()
    told = address(state_dir)
    other.join()
    theirs = address(other.folder.parent)
    (state_dir / "broker" / "address.json").write_text(json.dumps({**told, "port": theirs["port"], "pid": 1}))
    url = broker.join()
    assert port_of(url) != theirs["port"]
    broker.leave()
    assert greeting(theirs["port"]) != {}, "it was not stopped either"
    other.leave()


def test_strangers_are_kept_out(state_dir: Path):
    broker = EmbeddedBroker(state_dir)
    url = broker.join()
    for path in (broker.folder / "address.json", broker.folder / "server.conf"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(broker.folder.stat().st_mode) == 0o700
    assert greeting(port_of(url))["auth_required"] is True
    assert "sync_interval: always" in (broker.folder / "server.conf").read_text()
    broker.leave()


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="state-dir"):
        EmbeddedBroker(tmp_path / "file").join()


def test_what_is_done_is_swept_and_what_is_not_stays(state_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nats_wire, "KEPT", 10)
    kinds = queue_kinds()
    settings = QueueSettings(repository="", model="", source="embedded:s", sink="", state_dir=str(state_dir))
    with closing(opening.tools(kinds, "embedded:s", state_dir)) as tools:
        tools.send((b"%d" % i for i in range(100)), lambda count: None)
        with opened(opening.source(kinds, settings)) as source:
            messages = polled(source, 100)
            source.settle([m for m in messages if m.position.offset != 41])
            until(lambda: source.lag()[0].in_hand == 1)
            source.lag()
            assert next(tools.tail(1000, False)).position.offset == 41
            source.settle(messages[40:41])
            until(lambda: source.lag()[0].in_hand == 0)
            source.lag()
        assert [m.value for m in tools.tail(1000, False)] == [b"%d" % i for i in range(90, 100)]


def a_letter(message: Message) -> DeadLetter:
    """With all the history that there can be."""
    failures = tuple(Failure(at=float(i), error="\u20ac" * 500, by="m version 1") for i in range(20))
    return DeadLetter(
        id="m1", source="s", origin=message.name, attempts=20, history=failures, published=1.0, buried=2.0,
        value=message.value,
    )  # fmt: skip


def test_the_largest_message_becomes_a_dead_letter_with_what_there_is_room_for(state_dir: Path):
    settings = QueueSettings(repository="", model="", source="embedded:s", sink="", state_dir=str(state_dir))
    largest = os.urandom(MAX_PAYLOAD - nats_wire.HEADERS)
    with (
        closing(opening.tools(queue_kinds(), "embedded:s", state_dir)) as tools,
        opened(opening.source(queue_kinds(), settings)) as source,
    ):
        with pytest.raises(InvalidInput, match="embedded:s takes"):
            tools.send(iter([largest + b"x"]), lambda count: None)
        tools.send(iter([largest]), lambda count: None)
        (message,) = polled(source, 1)
        source.bury([a_letter(message)])
        source.settle([message])
        (found,) = tools.dead()
        assert found.value == largest
        assert (found.id, found.origin, found.attempts) == ("m1", message.name, 20)
        assert [failure.at for failure in found.history] == [19.0], "the last one, of those that there were"
        with pytest.raises(SettingsError, match="raise the server's max_payload"):
            source.bury([msgspec.structs.replace(a_letter(message), value=b"x" * MAX_PAYLOAD)])
