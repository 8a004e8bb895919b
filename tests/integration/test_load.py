"""The load generator against a server in the same process, on loopback: counts, percentiles, failures."""

from __future__ import annotations

import asyncio

import pytest

from octoserve.cli.load import Load, Outcome

REQUEST = b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"


class Server(asyncio.Protocol):
    """Answers each request with the next of `answers`, the last one for ever; None hangs up."""

    answers: tuple[bytes | None, ...] = ()
    seen = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        kind = type(self)
        for _ in range(data.count(b"\r\n\r\n")):
            answer = kind.answers[min(kind.seen, len(kind.answers) - 1)]
            kind.seen += 1
            if answer is None:
                self._transport.close()
            else:
                self._transport.write(answer)  # type: ignore[attr-defined]


def answer(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


def loaded(*answers: bytes | None, rate: float | None = None, connections: int = 4) -> tuple[Outcome, int]:
    kind = type("Scripted", (Server,), {"answers": answers, "seen": 0})

    async def run() -> tuple[Outcome, int]:
        server = await asyncio.get_running_loop().create_server(kind, "127.0.0.1", 0)
        async with server:
            load = Load("127.0.0.1", server.sockets[0].getsockname()[1], REQUEST, connections, rate)
            return await load.run(0.15), kind.seen

    return asyncio.run(run())


def test_every_answer_is_counted_once() -> None:
    outcome, seen = loaded(answer(200, b"{}"))
    assert outcome.statuses == {200: len(outcome.latencies)}
    assert 0 < len(outcome.latencies) <= seen
    assert outcome.broken == 0
    assert outcome.unanswered == 0
    assert outcome.sample == b"{}"
    assert outcome.percentile(0.5) <= outcome.percentile(0.99) <= max(outcome.latencies)


def test_answers_in_pieces_are_put_together() -> None:
    whole = answer(200, b"x" * 300_000)
    outcome, _ = loaded(whole)
    assert outcome.sample == b"x" * 300_000


def test_errors_count_by_status_and_have_no_latency() -> None:
    outcome, _ = loaded(answer(429, b'{"error":"full"}'))
    assert set(outcome.statuses) == {429}
    assert outcome.latencies == []
    assert outcome.percentile(0.5) != outcome.percentile(0.5)  # NaN
    assert outcome.sample == b'{"error":"full"}'


def test_lost_connections_are_counted_and_replaced() -> None:
    outcome, _ = loaded(*[answer(200, b"{}")] * 20, None, answer(200, b"{}"))
    assert outcome.broken == 1
    assert outcome.statuses[200] > 20


def test_open_loop_keeps_its_rate() -> None:
    outcome, _ = loaded(answer(200, b"{}"), rate=200)
    assert 0 < len(outcome.latencies) + outcome.unanswered <= 31  # 200/s for 0.15 s, however slow the machine


def test_open_loop_charges_a_silent_server() -> None:
    """A server that never answers has no latencies, and everything that was due is unanswered."""
    load = Load("127.0.0.1", 0, REQUEST, 1, rate=100)
    load._due.extend([0.0, 0.1])
    load.running = True
    load._send_due()  # no idle connection: what is due waits
    asyncio.run(load._finish())
    assert load.outcome.unanswered == 2


@pytest.mark.parametrize(("q", "expected"), [(0.0, 1.0), (0.5, 3.0), (0.99, 4.0), (1.0, 4.0)])
def test_percentiles(q: float, expected: float) -> None:
    assert Outcome(latencies=[4.0, 1.0, 3.0, 2.0]).percentile(q) == expected
