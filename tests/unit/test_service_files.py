"""Ports, locks and records of a service."""

from __future__ import annotations

import os
import socket

import pytest

from octoserve.core.errors import SettingsError
from octoserve.patterns.online.supervisor.ports import reserve
from octoserve.patterns.online.supervisor.service_files import (
    ServiceFiles,
    ServiceRecord,
    WorkerRecord,
    write_atomically,
)
from octoserve.patterns.online.supervisor.worker_process import is_alive, start_time


def record(*workers, asked=0, root="/r"):
    return ServiceRecord(
        root=root, host="h", asked_http=asked, http_port=1, grpc_port=2, admin_port=3, supervisor=4, workers=workers
    )


def me():
    return WorkerRecord(os.getpid(), start_time(os.getpid()), 0, "c")


def test_port_0_picks_one_that_workers_can_share_and_strangers_cannot():
    held = reserve("127.0.0.1", 0, "http_port")
    with socket.socket() as worker, socket.socket() as stranger:
        worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        worker.bind(("127.0.0.1", held.port))
        worker.listen()
        with pytest.raises(OSError):
            stranger.bind(("127.0.0.1", held.port))
        socket.create_connection(("127.0.0.1", held.port), 2).close()
        with pytest.raises(SettingsError, match=f"http_port: port {held.port} .* --http-port"):
            reserve("127.0.0.1", held.port, "http_port")
        reserve("127.0.0.1", held.port, "http_port", ours=True).close()
    held.close()


def test_unknown_host():
    with pytest.raises(SettingsError, match=r"host: 'no\.such\.invalid'"):
        reserve("no.such.invalid", 0, "http_port")


def test_one_supervisor_a_service(tmp_path):
    files = ServiceFiles.claim(tmp_path, 80)
    files.write(record())
    with pytest.raises(SettingsError, match=r"\(pid 4\) already serves port 80"):
        ServiceFiles.claim(tmp_path, 80)
    ServiceFiles.claim(tmp_path, 81).close()
    files.close()
    assert ServiceFiles.claim(tmp_path, 80).read() is None


def test_an_orphan_on_a_picked_port_is_found(tmp_path):
    files = ServiceFiles.claim(tmp_path, 5000)
    files.write(record(me()))
    assert ServiceFiles.find_orphan(tmp_path, "/r") is None, "its supervisor lives"
    files.close(workers_left=True)
    assert ServiceFiles.find_orphan(tmp_path, "/other") is None
    found = ServiceFiles.find_orphan(tmp_path, "/r")
    assert found is not None
    assert found.read() == record(me())
    found.write(record(WorkerRecord(os.getpid(), "another start", 0, "c")))
    found.close(workers_left=True)
    assert ServiceFiles.find_orphan(tmp_path, "/r") is None, "its workers are gone"


def test_start_time_tells_processes_of_one_pid_apart():
    pid = os.getpid()
    assert is_alive(pid, start_time(pid))
    assert not is_alive(pid, "1")
    assert not is_alive(2**22 - 1, "1")


def test_write_atomically_leaves_no_neighbour(tmp_path):
    write_atomically(tmp_path / "f", b"1")
    write_atomically(tmp_path / "f", b"2")
    assert (tmp_path / "f").read_bytes() == b"2"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_process_that_cannot_be_looked_at_is_not_taken_for_dead(monkeypatch):
    def fail(*told, **more):
        raise OSError(24, "Too many open files")

    started = start_time(os.getpid())
    monkeypatch.setattr("builtins.open", fail)
    alive = is_alive(os.getpid(), started)
    monkeypatch.undo()
    assert alive
