"""A whole service: versions come and go by files and by API while clients ask."""

from __future__ import annotations

import os
import socket
import sqlite3
import stat
import threading

import pytest

from support.supervised import Clients, Service, constant_model, publish, until


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


def test_new_version_under_load_without_an_error(serve, repository):
    service = serve()
    assert service.infer("m") == (200, 1.0)
    with Clients(service, "m") as clients:
        publish(repository, "m", 2)
        until(lambda: service.routes("m") == [2], 15, "version 2 answers")
        until(lambda: clients.answers[2.0] > 50)
        until(lambda: service.state("m", 1)["workers"] == {}, 15, "version 1 is unloaded")
    assert clients.errors == []
    assert clients.closed == 0
    assert set(clients.answers) == {1.0, 2.0}


def test_broken_version_is_seen_and_the_good_one_answers_then_a_repair_is_taken(serve, repository):
    service = serve()
    broken = publish(repository, "m", 2, b"not a model")
    until(lambda: service.state("m", 2)["state"] == "UNAVAILABLE", 15)
    assert "model.onnx" in service.state("m", 2)["reason"]
    assert service.infer("m") == (200, 1.0)
    (broken / "model.onnx").write_bytes(constant_model(2.0))
    until(lambda: service.routes("m") == [2], 15)


def test_a_folder_that_is_being_copied_is_waited_for(serve, repository):
    service = serve()
    content = constant_model(2.0)
    folder = repository / "m" / "2"
    folder.mkdir()
    stop = threading.Event()
    with open(folder / "model.onnx", "wb", buffering=0) as file:
        for byte in range(0, len(content) - 20, 20):
            file.write(content[byte : byte + 20])
            stop.wait(0.3)
            assert service.state("m", 2)["state"] in ("absent", "LOADING")
            if byte > 200:
                break
        file.write(content[byte + 20 :])
    until(lambda: service.routes("m") == [2], 15)
    assert service.state("m", 2)["state"] == "READY"


def test_unload_holds_over_new_versions_and_restarts_until_load(serve, repository):
    service = serve()
    assert service.admin("POST", "/api/models/m/unload")[0] == 200
    assert service.infer("m")[0] == 503
    publish(repository, "m", 2)
    assert service.stop() == 0
    service = serve()
    assert service.infer("m")[0] == 503
    assert service.state("m", 2)["reason"].startswith("unloaded by request")
    assert service.admin("POST", "/api/models/m/load")[0] == 200
    assert service.infer("m") == (200, 2.0)
    assert service.admin("POST", "/api/models/nope/load")[0] == 404


def test_changed_files_are_refused_and_what_is_loaded_serves_on(serve, repository):
    service = serve()
    until(lambda: sqlite3.connect(service.state_dir / "octoserve.db").execute("select * from digest").fetchall())
    generation = service.admin("GET", "/api/generation")[1]["generation"]
    (repository / "m" / "1" / "model.onnx").write_bytes(constant_model(9.0))
    until(lambda: "digest was" in service.state("m", 1)["reason"], 15)
    assert service.infer("m") == (200, 1.0)
    assert service.stop() == 0
    service = serve()
    assert service.infer("m")[0] == 503
    assert "verify m/1 --accept" in service.state("m", 1)["reason"]
    assert service.admin("GET", "/api/generation")[1]["generation"] > generation


def test_labels(serve, repository):
    publish(repository, "m", 2)
    service = serve("--version-policy", "all")
    assert service.admin("PUT", "/api/models/m/labels/stable", {"version": 1})[0] == 200
    status, answer = service.admin("PUT", "/api/models/m/labels/stable", {"version": 3})
    assert status == 404
    assert "no version 3" in answer["error"]
    publish(repository, "m", 3, b"junk")
    until(lambda: service.state("m", 3)["state"] == "UNAVAILABLE", 15)
    status, answer = service.admin("PUT", "/api/models/m/labels/stable", {"version": 3})
    assert status == 409
    assert "UNAVAILABLE" in answer["error"]
    assert service.admin("GET", "/api/models")[1]["m"]["labels"] == {"stable": 1}
    assert service.admin("PUT", "/api/models/m/labels/stable", b"x".decode())[0] == 400


def test_admin_pages(serve):
    service = serve(workers=1)
    assert service.admin("GET", "/livez")[0] == 200
    assert service.admin("GET", "/readyz")[0] == 200
    assert service.infer("m") == (200, 1.0)
    status, page = service.admin("GET", "/metrics")
    assert status == 200
    assert 'octoserve_version_state{model="m",version="1",state="READY"} 1' in page
    assert service.admin("GET", "/nothing")[0] == 404
    assert "error" in service.admin("DELETE", "/livez")[1]


def test_token_guards_the_api(serve, monkeypatch):
    monkeypatch.setenv("OCTOSERVE_ADMIN_TOKEN", "secret")
    service = serve(workers=1, wait=False)
    until(service.ports_file.exists, 30)
    import json

    service.ports = json.loads(service.ports_file.read_text())
    assert service.admin("GET", "/api/models")[0] == 401
    assert service.admin("GET", "/api/models", headers={"authorization": "Bearer wrong"})[0] == 401
    assert service.admin("GET", "/api/models", headers={"authorization": "Bearer secret"})[0] == 200
    assert service.admin("GET", "/metrics")[0] == 200


def test_state_directory_is_private_and_a_second_supervisor_is_refused(serve):
    service = serve(workers=1)
    control, inside = sorted(service.state_dir.glob("*.sock"), key=lambda path: ".inside." in path.name)
    assert [stat.S_IMODE(os.stat(path).st_mode) for path in (control, inside)] == [0o600, 0o600]
    assert stat.S_IMODE(os.stat(service.state_dir).st_mode) == 0o700
    second = serve("--http-port", str(service.ports["http"]), wait=False)
    assert second.process.wait(20) == 2
    assert "already serves port" in second.output()


def test_port_of_a_stranger_is_a_clear_error(serve):
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        service = serve("--http-port", str(port), wait=False)
        assert service.process.wait(20) == 2
        assert f"port {port} on 127.0.0.1 is in use" in service.output()
        assert "--http-port" in service.output()
        assert "Traceback" not in service.output()


def test_admin_beyond_loopback_needs_a_token(serve):
    service = serve("--admin-host", "0.0.0.0", wait=False)
    assert service.process.wait(20) == 2
    assert "OCTOSERVE_ADMIN_TOKEN" in service.output()
