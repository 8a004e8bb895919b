"""Processes are really killed and really stopped, while clients ask."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import time

import pytest

from support.supervised import Clients, Service, publish, until


@pytest.fixture
def repository(tmp_path):
    publish(tmp_path / "models", "m", 1)
    return tmp_path / "models"


@pytest.fixture
def serve(tmp_path, repository):
    started = []

    def start(*flags, **more):
        service = Service(repository, tmp_path / "state", *flags, **more)
        started.append(service)
        return service

    yield start
    for service in reversed(started):
        service.clean()


def pids(service):
    return {worker["pid"] for worker in service.workers()}


def all_serve(service, count=2):
    return [w["state"] for w in service.workers()] == ["serving"] * count


def test_killed_worker_is_replaced_while_the_other_serves(serve):
    service = serve()
    before = pids(service)
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    until(lambda: all_serve(service) and victim not in pids(service), 15)
    assert len(pids(service) & before) == 1
    assert service.infer("m") == (200, 1.0)
    assert sum(w["restarts"] for w in service.workers()) == 1
    with Clients(service, "m") as clients:
        until(lambda: clients.answers[1.0] > 200)
    assert clients.errors == []


def test_replacement_answers_nothing_before_it_is_ready(serve):
    """After the kill itself, which cuts what the dead worker held, no request may fail."""
    service = serve()
    os.kill(min(pids(service)), signal.SIGKILL)
    time.sleep(0.05)
    with Clients(service, "m") as clients:
        until(lambda: all_serve(service), 15)
        until(lambda: clients.answers[1.0] > 200)
    assert clients.errors == []


def test_counters_do_not_go_back_when_a_worker_dies(serve):
    service = serve(workers=1)
    for _ in range(20):
        assert service.infer("m")[0] == 200

    def count():
        page = service.admin("GET", "/metrics")[1]
        lines = [line for line in page.splitlines() if line.startswith("octoserve_request_seconds_count")]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    assert count() == 20
    os.kill(min(pids(service)), signal.SIGKILL)
    until(lambda: all_serve(service, 1), 15)
    assert count() >= 20


def test_stopped_worker_is_replaced(serve):
    service = serve("--hang", "2s")
    victim = min(pids(service))
    os.kill(victim, signal.SIGSTOP)
    until(lambda: victim not in pids(service) and all_serve(service), 20)


def test_workers_serve_on_without_supervisor_and_are_adopted(serve, repository):
    service = serve()
    before = pids(service)
    generation = service.admin("GET", "/api/generation")[1]["generation"]
    port = service.ports["http"]
    with Clients(service, "m") as clients:
        service.kill()
        until(lambda: clients.answers[1.0] > 100)
        status = _repository_api(port, "m", "unload")
        assert status == 503, "no supervisor, so no operation"
        second = serve()
        assert second.ports["http"] == port
        assert pids(second) == before
        assert all(w["adopted"] for w in second.workers())
        publish(repository, "m", 2)
        until(lambda: second.routes("m") == [2], 15)
        until(lambda: clients.answers[2.0] > 50)
    assert clients.errors == []
    assert clients.closed == 0
    assert second.admin("GET", "/api/generation")[1]["generation"] > generation
    assert second.stop() == 0
    assert not any(os.path.exists(f"/proc/{pid}") and _runs(pid) for pid in before)


def test_workers_with_other_settings_are_replaced_without_losing_a_request(serve):
    service = serve()
    before = pids(service)
    with Clients(service, "m") as clients:
        service.kill()
        second = serve("--max-queue", "77")
        until(lambda: all_serve(second) and not pids(second) & before, 20)
        until(lambda: clients.answers[1.0] > 200)
    assert clients.errors == []


def test_fewer_workers_after_a_restart(serve):
    service = serve(workers=2)
    service.kill()
    second = serve(workers=1)
    until(lambda: all_serve(second, 1), 15)
    assert second.infer("m") == (200, 1.0)


def test_drain_finishes_what_is_in_flight_and_exits_0(serve):
    service = serve()
    workers = pids(service)
    with Clients(service, "m") as clients:
        until(lambda: clients.answers[1.0] > 50)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(10) == 0
    assert [e for e in clients.errors if not e.startswith(("ConnectionRefused", "ConnectionReset"))] == []
    assert not any(_runs(pid) for pid in workers)
    assert not service.ports_file.exists()
    assert "Traceback" not in service.output()


def test_stopped_worker_does_not_hold_up_the_end(serve):
    service = serve()
    os.kill(min(pids(service)), signal.SIGSTOP)
    began = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(10) == 1
    assert time.monotonic() - began < 5.0


def test_second_signal_cuts_short(serve):
    service = serve("--grace", "30s")
    os.kill(min(pids(service)), signal.SIGSTOP)
    service.process.send_signal(signal.SIGINT)
    until(lambda: "draining: " in service.output())  # two that come before one is heard are one
    service.process.send_signal(signal.SIGINT)
    assert service.process.wait(20) == 1, "well before the grace is over, which a worker that stands still takes whole"


def test_a_repository_that_is_away_ends_no_service(serve, repository):
    service = serve(workers=1)
    repository.rename(repository.with_name("away"))
    assert _repository_api(service.ports["http"], "m", "load") == 503
    assert service.admin("POST", "/api/models/m/load")[0] == 503
    assert service.infer("m") == (200, 1.0)
    repository.with_name("away").rename(repository)
    assert _repository_api(service.ports["http"], "m", "load") == 200
    assert service.process.poll() is None


def test_a_state_directory_that_was_removed_is_made_again_and_workers_are_replaced(serve):
    service = serve(workers=1)
    assert service.admin("POST", "/api/models/m/unload")[0] == 200
    shutil.rmtree(service.state_dir)
    until(lambda: list(service.state_dir.glob("*.inside.*.sock")), 20, "the worker's socket inside")
    before = pids(service)
    os.kill(min(before), signal.SIGKILL)
    until(lambda: all_serve(service, 1) and not pids(service) & before, 20)
    assert service.admin("POST", "/api/models/m/load")[0] == 200
    assert service.infer("m") == (200, 1.0)
    assert service.process.poll() is None


def _repository_api(port, model, action):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", f"/v2/repository/models/{model}/{action}", "{}")
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    if answer.status != 200:
        assert "error" in json.loads(content)
    return answer.status


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_store_that_cannot_be_opened_ends_the_supervisor_and_no_worker(serve, tmp_path):
    """Whoever restarts it on a full or locked disk finds the workers of before serving, and may try again."""
    service = serve("--http-port", "0")
    before = pids(service)
    service.kill()
    store = tmp_path / "state" / "rollouts.db"
    store.rename(tmp_path / "aside.db")
    store.mkdir()
    ports = service.ports
    flags = [f"--{door}-port={ports[door]}" for door in ("http", "grpc", "admin")]
    second = serve(*flags, wait=False)
    with Clients(service, "m") as clients:
        assert second.process.wait(60) != 0
        assert "rollouts" in second.output()
        seen = clients.answers[1.0]
        until(lambda: clients.answers[1.0] > seen + 50)
    assert clients.errors == []
    store.rmdir()
    (tmp_path / "aside.db").rename(store)
    third = serve(*flags)
    assert pids(third) == before
    assert third.infer("m") == (200, 1.0)
