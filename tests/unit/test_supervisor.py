"""The supervisor with processes that are only played: what goes wrong in one piece of work ends no service."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from types import SimpleNamespace

import pytest

from octoserve.core.errors import SettingsError
from octoserve.patterns.online.link.messages import Operation
from octoserve.patterns.online.supervisor import supervisor as module
from octoserve.patterns.online.supervisor.supervisor import Supervisor
from octoserve.spec import ServeSettings, check
from support.security import Ca


@pytest.fixture
def made(tmp_path):
    (tmp_path / "models").mkdir()
    settings = ServeSettings(
        repository=tmp_path / "models",
        state_dir=tmp_path / "state",
        http_port=0,
        grpc_port=0,
        admin_port=0,
        workers=1,
    )
    supervisor = Supervisor(settings, spawn=lambda: None)
    yield supervisor
    supervisor.admin_socket.close()
    for held in supervisor._ports:
        held.close()


@pytest.mark.parametrize(
    "error", [FileNotFoundError("models"), sqlite3.OperationalError("database is locked"), OSError("disk full")]
)
def test_an_operation_that_fails_unforeseen_is_answered_and_the_service_goes_on(made, error):
    async def fail(model):
        raise error

    replies = []
    made.room.load = fail

    async def main():
        made._operate(SimpleNamespace(send=replies.append), Operation(7, "load", "m"))
        while made._tasks:
            await asyncio.sleep(0)

    asyncio.run(main())
    (reply,) = replies
    assert (reply.id, reply.kind) == (7, "Unavailable")
    assert str(error) in reply.error
    assert not made._stop.is_set()


def test_tls_and_an_envoy_of_ours_are_refused_together(tmp_path):
    certificate, key = Ca(tmp_path).issue("server")
    values = {
        "repository": str(tmp_path), "state_dir": str(tmp_path / "state"),
        "rollout": {"backend": {"kind": "envoy", "start": True}},
        "http_port": 0, "grpc_port": 0, "admin_port": 0,
        "security": {"tls": {"certificate": str(certificate), "key": str(key)}},
    }  # fmt: skip
    with pytest.raises(SettingsError, match="with an Envoy of ours"):
        Supervisor(check(values, {}), spawn=lambda: None)


def test_a_tick_that_fails_is_made_again(made, monkeypatch, caplog):
    monkeypatch.setattr(module, "TICK", 0.0)
    ticks = []

    def tick():
        ticks.append(1)
        raise OSError(24, "Too many open files")

    made.fleet.tick = tick

    async def main():
        made._start(made._watch())
        while len(ticks) < 5:
            await asyncio.sleep(0)
        for task in made._tasks:
            task.cancel()

    asyncio.run(main())
    assert not made._stop.is_set()
    assert len([record for record in caplog.records if "Too many open files" in record.message]) == 1


def test_a_state_directory_that_was_removed_is_made_again(made):
    shutil.rmtree(made.settings.state_dir)
    made._write_record()
    assert made.files.read().http_port == made.http_port


def test_a_control_socket_that_was_removed_is_made_again(made):
    async def main():
        made._server = await asyncio.start_unix_server(made._converse, sock=module.listen(made.files.socket))
        shutil.rmtree(made.settings.state_dir)
        await made._keep_socket()
        _, writer = await asyncio.open_unix_connection(made.files.socket)
        writer.close()
        await writer.wait_closed()
        made._server.close()
        await made._server.wait_closed()  # the server's own end of the connection as well

    asyncio.run(main())


def test_a_load_that_brings_a_model_is_written_down_after_it():
    done = []

    async def noted(model, who, action):
        done.append(("noted", model, who, action))
        return ("load", model) in done or action == "unload"

    async def load(model):
        done.append(("load", model))

    async def unload(model):
        done.append(("unload", model))

    house = SimpleNamespace(rollouts=SimpleNamespace(noted=noted), room=SimpleNamespace(load=load, unload=unload))
    for action in ("load", "unload"):
        asyncio.run(Supervisor.change(house, action, "m", "ann"))
    said = ("noted", "m", "ann", "load")
    assert done == [said, ("load", "m"), said, ("noted", "m", "ann", "unload"), ("unload", "m")]
