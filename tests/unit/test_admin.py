"""The admin API over real sockets, with a control room that is only played."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from types import SimpleNamespace

import msgspec
import pytest

from octoserve.core import errors
from octoserve.patterns.online.supervisor import admin, admin_server
from octoserve.patterns.online.supervisor.admin_guards import OriginGuard
from octoserve.routing.plan import RoutePlan, split_arms
from octoserve.security.caller import Caller
from octoserve.security.guard import Guard
from octoserve.security.keys import digest_of
from octoserve.security.settings import Security

HALF_A_HEAD = b"GET /livez HTTP/1.1\r\nhost: "


class Room:
    """Does what it is asked, or fails with `error`."""

    scan = None
    current = SimpleNamespace(catalog=(), plans=(), labels={}, generation=1)
    error: Exception | None = None

    def __init__(self):
        self.asked = []

    async def _note(self, *asked):
        self.asked.append(asked)
        raise self.error or errors.NotFound("no such model")

    async def load(self, model):
        await self._note("load", model)

    async def set_label(self, model, label, version):
        await self._note("label", model, label, version)

    async def remove_label(self, model, label):
        await self._note("unlabel", model, label)


class House:
    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self.room = Room()
        self.supervisor = SimpleNamespace(
            room=self.room,
            fleet=SimpleNamespace(serving=list, members=list, slots=[]),
            rollouts=SimpleNamespace(live={}, last={}, endpoints={}, looks={}),
            settings=SimpleNamespace(admin_token=None, protect_metrics=False),
            admin_port=self.port,
            ready=True,
            security=SimpleNamespace(guard=Guard(Security())),
        )
        self.noted = []

        async def noted(*what):
            self.noted.append(what)

        async def change(action, model, who):
            self.noted.append((model, who, action))
            await self.room.load(model)

        self.supervisor.rollouts.noted = noted
        self.supervisor.change = change

    def run(self, work):
        async def main():
            serving = asyncio.ensure_future(admin.serve_admin(self.supervisor, self.listener))
            try:
                async with asyncio.timeout(20):
                    return await work()
            finally:
                serving.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await serving

        return asyncio.run(main())

    async def connect(self, sent=b""):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(sent)
        return reader, writer

    async def ask(self, method, path, body=b"", **headers):
        headers = {"host": f"127.0.0.1:{self.port}", "content-length": str(len(body)), **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        reader, writer = await self.connect(
            f"{method} {path} HTTP/1.1\r\n{head}connection: close\r\n\r\n".encode() + body
        )
        answer = await reader.read()
        writer.close()
        head, _, content = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), content, head.decode().lower()


@pytest.fixture
def house():
    made = House()
    yield made
    made.listener.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 404),
        ({"host": "localhost:{port}"}, 404),
        ({"host": "[::1]:{port}", "origin": "http://127.0.0.1:{port}"}, 404),
        ({"host": "evil.example:{port}"}, 403),
        ({"host": "localhost"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:1"}, 403),
        ({"origin": "https://localhost:{port}"}, 403),
    ],
)
def test_a_web_page_may_change_nothing(house, headers, status):
    headers = {name: value.format(port=house.port) for name, value in headers.items()}

    async def work():
        assert (await house.ask("GET", "/livez", **headers))[0] == 200
        return await house.ask("POST", "/api/models/m/load", **headers)

    came, content, _ = house.run(work)
    assert came == status
    assert "error" in json.loads(content)
    assert bool(house.room.asked) == (status == 404)


def test_a_route_plan_as_it_is(house):
    plan = RoutePlan("m", 4, split_arms(1, 2, 500), seed="r", key="header:x-user")
    house.room.current = SimpleNamespace(catalog=(), plans=(plan,), labels={}, generation=4)

    async def work():
        return await house.ask("GET", "/api/models/m/plan"), await house.ask("GET", "/api/models/x/plan")

    known, unknown = house.run(work)
    assert msgspec.json.decode(known[1], type=RoutePlan) == plan
    assert (unknown[0], json.loads(unknown[1])["error"]) == (404, "nothing answers for 'x'; there is m")


@pytest.mark.parametrize("path", ["/api/models", "/api/rollouts", "/api/live", "/console", "/console/fragment"])
def test_a_page_that_has_pointed_its_name_here_reads_nothing(house, path):
    status, _, _ = house.run(lambda: house.ask("GET", path, host=f"evil.example:{house.port}"))
    assert status == 403


def test_with_a_token_any_name_will_do(house):
    house.supervisor.security.guard = Guard(Security(), extra={digest_of("t"): Caller("admin API", role="admin")})
    assert not isinstance(admin.application(house.supervisor), OriginGuard)


def test_roles_and_who_is_noted(house):
    keys = {role: f"key-{role}" for role in ("viewer", "operator", "admin")}
    extra = {digest_of(key): Caller(f"the {role}", role=role) for role, key in keys.items()}
    house.supervisor.security.guard = Guard(Security(), extra=extra)

    async def work():
        told = {}
        for role, key in keys.items():
            by = {"authorization": f"Bearer {key}"}
            told[role] = [
                (await house.ask("GET", "/api/workers", **by))[0],
                (await house.ask("POST", "/api/models/m/load", **by))[0],
            ]
        told[""] = [(await house.ask(method, "/api/models/m/load"))[0] for method in ("GET", "POST")]
        told["open"] = (await house.ask("GET", "/livez"))[0]
        return told

    assert house.run(work) == {
        "viewer": [200, 403],
        "operator": [200, 403],
        "admin": [200, 404],
        "": [401, 401],
        "open": 200,
    }
    assert house.noted == [("m", "the admin", "load")]


@pytest.mark.parametrize(
    ("error", "status"),
    [(errors.TooLarge("x"), 413), (errors.Overloaded("x", 3), 429), (errors.InvalidInput("x"), 400)],
)
def test_errors_by_kind(house, error, status):
    house.room.error = error
    came, _, head = house.run(lambda: house.ask("POST", "/api/models/m/load"))
    assert came == status
    assert ("retry-after: 3" in head) == (status == 429)


def test_labels_are_set_and_removed(house):
    async def work():
        await house.ask("PUT", "/api/models/m/labels/stable", b'{"version": 2}')
        await house.ask("DELETE", "/api/models/m/labels/stable")
        return (await house.ask("PUT", "/api/models/m/labels/stable", b" " * 70_000))[0]

    assert house.run(work) == 413
    assert house.room.asked == [("label", "m", "stable", 2), ("unlabel", "m", "stable")]


def test_connections_are_bounded(house, monkeypatch):
    monkeypatch.setattr(admin_server, "MAX_CONNECTIONS", 20)
    monkeypatch.setattr(admin_server, "HEAD_TIMEOUT", 60.0)

    async def work():
        opened = [await house.connect(HALF_A_HEAD) for _ in range(50)]
        closed = {asyncio.ensure_future(reader.read()) for reader, _ in opened}
        turned_away = 0
        while turned_away < 30:
            done, closed = await asyncio.wait(closed, return_when=asyncio.FIRST_COMPLETED)
            turned_away += len(done)
        assert (turned_away, len(closed)) == (30, 20)
        for task in closed:
            task.cancel()

    house.run(work)


def test_a_connection_that_does_not_finish_its_head_is_closed_and_makes_room(house, monkeypatch):
    monkeypatch.setattr(admin_server, "MAX_CONNECTIONS", 1)
    monkeypatch.setattr(admin_server, "HEAD_TIMEOUT", 0.05)

    async def work():
        reader, _ = await house.connect(HALF_A_HEAD)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        monkeypatch.setattr(admin_server, "HEAD_TIMEOUT", 60.0)
        assert (await house.ask("GET", "/livez"))[0] == 200

    house.run(work)


def test_a_kept_connection_that_is_slow_to_ask_again_is_closed(house, monkeypatch):
    """From a later request's first byte: the clock of the one before was stopped by its answer."""
    monkeypatch.setattr(admin_server, "HEAD_TIMEOUT", 60.0)
    request = f"GET /livez HTTP/1.1\r\nhost: localhost:{house.port}\r\n\r\n".encode()

    async def work():
        reader, writer = await house.connect(request)
        await reader.readuntil(b"ok\n")
        writer.write(request)
        await reader.readuntil(b"ok\n")
        monkeypatch.setattr(admin_server, "HEAD_TIMEOUT", 0.05)
        writer.write(request[:10])
        async with asyncio.timeout(30):
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""

    house.run(work)


def test_a_body_that_does_not_come_is_not_waited_for(house, monkeypatch):
    monkeypatch.setattr(admin, "_BODY_TIMEOUT", 0.02)

    async def work():
        head = f"PUT /api/models/m/labels/a HTTP/1.1\r\nhost: localhost:{house.port}\r\ncontent-length: 9\r\n\r\n"
        reader, _ = await house.connect(head.encode())
        return await reader.read()

    assert house.run(work).startswith(b"HTTP/1.1 408 ")
