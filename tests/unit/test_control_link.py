"""The control socket and the worker's side of it, over a real unix socket in this process."""

from __future__ import annotations

import asyncio
import os
import stat

import msgspec
import pytest

from octoserve.core.errors import BrokenVersion, Unavailable
from octoserve.lifecycle.states import State, VersionReport
from octoserve.patterns.online.link.messages import (
    Applied,
    Collect,
    Collected,
    Desired,
    Hello,
    Operation,
    OperationReply,
    Report,
    ToSupervisor,
)
from octoserve.patterns.online.link.unix_socket import MAX_FRAME, frame, listen, messages, peer_of
from octoserve.patterns.online.link.worker_end import ControlLink

HELLO = Hello(os.getpid(), 0, 1, 2, 0)


class Supervisor:
    """Accepts one connection at a time and notes what it hears."""

    def __init__(self, path):
        self.path, self.heard, self.writer = path, asyncio.Queue(), None

    async def start(self):
        self.server = await asyncio.start_unix_server(self._serve, sock=listen(self.path))
        return self

    async def _serve(self, reader, writer):
        self.writer = writer
        assert peer_of(writer.get_extra_info("socket")) in (None, (os.getpid(), os.getuid()))
        async for message in messages(reader, msgspec.msgpack.Decoder(ToSupervisor)):
            self.heard.put_nowait(message)
        writer.close()

    async def hears(self, kind):
        async with asyncio.timeout(5):
            while True:
                message = await self.heard.get()
                if isinstance(message, kind):
                    return message

    def say(self, message):
        self.writer.write(frame(message))

    async def gone(self):
        self.server.close()
        self.writer.close()
        self.path.unlink(missing_ok=True)  # since Python 3.13 closing the server does it


def link_to(path, **callbacks):
    made = {"on_desired": lambda _: None, "on_drain": lambda _: None, "on_collect": lambda: b"", **callbacks}
    return ControlLink(str(path), lambda: HELLO, **made)


async def play(path, act, **callbacks):
    supervisor = await Supervisor(path).start()
    link = link_to(path, **callbacks)
    task = asyncio.create_task(link.run())
    try:
        assert await supervisor.hears(Hello) == HELLO
        await act(supervisor, link)
    finally:
        task.cancel()
        supervisor.server.close()


@pytest.mark.parametrize("deep", [False, True], ids=["short path", "path beyond sun_path"])
def test_hello_desired_collect(tmp_path, deep):
    folder = tmp_path
    if deep:
        folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True, exist_ok=True)
    desired = Desired(5, (), (), {}, ())
    got = []

    async def act(supervisor, link):
        supervisor.say(desired)
        supervisor.say(Collect(3))
        assert await supervisor.hears(Collected) == Collected(3, b"metrics")
        assert got == [desired]
        link.applied(5)
        assert await supervisor.hears(Applied) == Applied(5)
        assert stat.S_IMODE(os.stat(supervisor.path).st_mode) == 0o600

    asyncio.run(play(folder / "s.sock", act, on_desired=got.append, on_collect=lambda: b"metrics"))


def test_report_is_said_again_after_a_reconnection(tmp_path):
    reports = (VersionReport("m", 1, State.READY),)

    async def act(supervisor, link):
        assert await supervisor.hears(Report) == Report(())
        link.report(reports)
        assert await supervisor.hears(Report) == Report(reports)
        await supervisor.gone()
        second = await Supervisor(supervisor.path).start()
        assert await second.hears(Hello) == HELLO
        assert await second.hears(Report) == Report(reports)
        second.server.close()

    asyncio.run(play(tmp_path / "s", act))


def test_operations(tmp_path):
    async def act(supervisor, link):
        asked = asyncio.create_task(link.operate("load", "m"))
        operation = await supervisor.hears(Operation)
        assert (operation.action, operation.model) == ("load", "m")
        supervisor.say(OperationReply(operation.id, "it is broken", "BrokenVersion"))
        with pytest.raises(BrokenVersion, match="it is broken"):
            await asked
        asked = asyncio.create_task(link.operate("unload", "m"))
        supervisor.say(OperationReply((await supervisor.hears(Operation)).id))
        await asked
        asked = asyncio.create_task(link.operate("load", "m"))
        await supervisor.hears(Operation)
        await supervisor.gone()
        with pytest.raises(Unavailable, match="went away"):
            await asked
        with pytest.raises(Unavailable, match="not running"):
            await link.operate("load", "m")

    asyncio.run(play(tmp_path / "s", act))


def test_the_last_metrics_are_sent_and_read_before_leaving(tmp_path):
    async def act(supervisor, link):
        await link.leave(timeout=5)
        assert supervisor.heard.qsize() == 2  # the report, and what was read before the supervisor hung up
        assert await supervisor.hears(Collected) == Collected(0, b"last")
        link.applied(7)  # whatever comes now is not said any more
        await asyncio.sleep(0.05)
        assert supervisor.heard.empty()

    asyncio.run(play(tmp_path / "control.sock", act, on_collect=lambda: b"last"))


def test_leaving_does_not_wait_for_a_supervisor_that_hangs_or_is_gone(tmp_path):
    async def act():
        connected, end = asyncio.Event(), asyncio.Event()

        async def hang(reader, writer):
            connected.set()
            await end.wait()
            writer.close()

        server = await asyncio.start_unix_server(hang, sock=listen(tmp_path / "control.sock"))
        link = link_to(tmp_path / "control.sock")
        task = asyncio.create_task(link.run())
        await connected.wait()
        await asyncio.sleep(0.01)
        await link.leave(timeout=0.01)
        assert not task.done()
        end.set()
        await task  # the link does not come back
        server.close()
        await link_to(tmp_path / "nobody.sock").leave(timeout=5)

    asyncio.run(act())


def test_a_callback_that_fails_does_not_end_the_conversation(tmp_path):
    def fail(_):
        raise RuntimeError("ours")

    async def act(supervisor, link):
        supervisor.say(Desired(5, (), (), {}, ()))
        supervisor.say(Collect(1))
        assert await supervisor.hears(Collected) == Collected(1, b"")

    asyncio.run(play(tmp_path / "s", act, on_desired=fail))


def test_abandoned_worker_leaves(tmp_path):
    times = iter([0.0, 61.0, 62.0])
    link = ControlLink(
        str(tmp_path / "nobody"),
        lambda: HELLO,
        on_desired=print,
        on_drain=print,
        on_collect=lambda: b"",
        clock=lambda: next(times),
    )
    asyncio.run(asyncio.wait_for(link.run(), 5))


@pytest.mark.parametrize("bytes_", [b"\xff\xff\xff\xff", (1).to_bytes(4, "big") + b"\xc1"])
def test_what_is_no_message_is_an_error(bytes_):
    async def read():
        reader = asyncio.StreamReader()
        reader.feed_data(bytes_)
        reader.feed_eof()
        return [m async for m in messages(reader, msgspec.msgpack.Decoder(ToSupervisor))]

    assert MAX_FRAME < 0xFFFFFFFF
    with pytest.raises((ValueError, msgspec.MsgspecError)):
        asyncio.run(read())
