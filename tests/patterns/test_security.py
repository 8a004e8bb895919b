"""The story of who may ask: keys, tokens and certificates change while requests run, and nobody who may is refused."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import psutil
import pytest

from octoserve import AsyncClient, Client
from octoserve.codecs.protos import message
from octoserve.control.rollout.store import SqliteStore
from octoserve.core.errors import Forbidden, Unauthenticated
from octoserve.security.keys import new_key
from octoserve.security.trust import client_context
from support.security import ISSUER, Authority, Ca, Provider, Secured, entry, keys_file, secured, touch
from support.supervised import SERVE, publish, until

KEYS = {name: new_key() for name in ("team-a", "reader", "keeper", "viewer", "operator", "admin")}
HASTY = "import octoserve.patterns.online.supervisor.security_watch as w; w.AGAIN_SECONDS = 0.2; " + SERVE
"""Tests do not wait ten seconds for a provider."""
SPEC = """
security:
  tls: {{certificate: {folder}/tls/server.crt, key: {folder}/tls/server.key}}
  keys: {folder}/keys.yaml
  jwt: {{jwks: "{url}", issuer: "{issuer}", audience: octoserve, ca: {folder}/tls/ca.crt, refresh: 10s}}
models:
  fraud: {{rollout: {{strategy: canary, on_new_version: hold, steps: [{{weight: 10%, pause: 1h}}]}}}}
rollout: {{on_new_version: hold}}
"""


class House(NamedTuple):
    folder: Path
    ca: Ca
    authority: Authority
    provider: Provider
    service: Secured

    def keys(self, *more: dict[str, Any]) -> None:
        """The keys' file: those of before, and more."""
        keys_file(
            self.folder / "keys.yaml",
            entry(KEYS["team-a"], "team-a", models=["fraud", "risk-*"], may=["infer"]),
            entry(KEYS["reader"], "reader", models=["*"], may=["read"]),
            entry(KEYS["keeper"], "keeper", models=["*"], may=["infer", "manage"]),
            *(entry(KEYS[role], f"the-{role}", role=role) for role in ("viewer", "operator", "admin")),
            *more,
        )

    def status(self, key: str, path: str = "/v2/models/fraud") -> int:
        return self.service.ask("GET", path, headers={"authorization": f"Bearer {key}"}).status

    def takes(self, key: str) -> bool:
        """Whether every worker knows it: a fresh connection may reach any."""
        return all(self.status(key) == 200 for _ in range(8))

    def refuses(self, key: str) -> bool:
        return all(self.status(key) == 401 for _ in range(8))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("security")
    for model in ("fraud", "risk-eu", "other"):
        publish(folder / "models", model, 1)
    publish(folder / "models", "fraud", 2)
    ca = Ca(folder / "tls")
    ca.issue("server", serial=1)
    authority = Authority("ES256")
    provider = Provider(ca, authority)
    spec = "version_policy: all\n" + SPEC.format(folder=folder, url=provider.url, issuer=ISSUER)
    made = House(folder, ca, authority, provider, None)  # type: ignore[arg-type]
    made.keys()
    tls = client_context(str(ca.certificate))
    with secured(folder, folder / "models", spec, tls, KEYS["team-a"], KEYS["admin"], HASTY) as service:
        yield made._replace(service=service)
    provider.close()


@pytest.fixture(scope="module")
def channel(house: House) -> Iterator[grpc.Channel]:
    credentials = grpc.ssl_channel_credentials(house.ca.certificate.read_bytes())
    with grpc.secure_channel(house.service.grpc, credentials) as made:
        yield made


# ---- every door

ROWS = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
V1 = {"instances": [[1, 2]]}
MLFLOW = {"inputs": {"x": [[1, 2]]}}
INFERS = [
    ("POST", "/v2/models/{}/infer", ROWS),
    ("POST", "/v2/models/{}/versions/1/infer", ROWS),
    ("POST", "/v1/models/{}:predict", V1),
    ("POST", "/v1/models/{}/versions/1:predict", V1),
    ("POST", "/models/{}/predict", [[1, 2]]),
    ("POST", "/models/{}/invoke", MLFLOW),
]
SEES = [
    ("GET", "/v2/models/{}", None),
    ("GET", "/v2/models/{}/ready", None),
    ("GET", "/v2/models/{}/versions/1/config", None),
    ("GET", "/v2/models/{}/stats", None),
    ("GET", "/v1/models/{}", None),
    ("GET", "/v1/models/{}/metadata", None),
]
MANAGES = [("POST", "/v2/repository/models/{}/load", None)]
ANYBODY = [
    ("GET", "/v2", None),
    ("POST", "/v2/repository/index", {}),
    ("GET", "/v2/models/stats", None),
    ("GET", "/v1/models", None),
    ("GET", "/openapi.json", None),
    ("GET", "/version", None),
    ("GET", "/execution-parameters", None),
]
NAMELESS = [("POST", "/invocations", MLFLOW), ("POST", "/predict", [[1, 2]])]
OPEN = ["/v2/health/live", "/v2/health/ready", "/", "/ping", "/health", "/docs"]


def ask(house: House, route: tuple[str, str, Any], model: str, key: str = "", **headers: str) -> Any:
    method, path, body = route
    headers |= {"x-api-key": key} if key else {}
    return house.service.ask(method, path.format(model), body, {"content-type": "application/json", **headers})


@pytest.mark.parametrize("route", [*INFERS, *SEES, *MANAGES, *ANYBODY, *NAMELESS], ids=lambda route: route[1])
def test_nobody_is_let_in_by_any_door(house: House, route: Any) -> None:
    for headers in ({}, {"authorization": "Bearer " + new_key()}, {"authorization": "Basic YTpi"}):
        answer = ask(house, route, "fraud", **headers)
        assert answer.status == 401, answer
        assert answer.headers["www-authenticate"].startswith("Bearer")
        told = answer.json()
        if "invo" in route[1]:
            assert told["error_code"] == "UNAUTHENTICATED"
        else:
            assert told.keys() == {"error"}


def test_health_is_open(house: House) -> None:
    assert [house.service.ask("GET", path).status for path in OPEN] == [200] * len(OPEN)


@pytest.mark.parametrize("route", [*INFERS, *SEES, *MANAGES], ids=lambda route: route[1])
def test_a_right_on_one_model_is_none_on_another(house: House, route: Any) -> None:
    for model in ("other", "not-there"):
        answer = ask(house, route, model, KEYS["team-a"])
        assert answer.status == 403, answer
        assert answer.json().get("error_code", "PERMISSION_DENIED") == "PERMISSION_DENIED"
        assert "no right on model" in answer.body.decode()


@pytest.mark.parametrize("route", [*INFERS, *SEES], ids=lambda route: route[1])
def test_who_may_is_answered(house: House, route: Any) -> None:
    for _ in range(2):  # the second one by a head that is known
        answer = ask(house, route, "fraud", KEYS["team-a"])
        assert answer.status == 200, answer


def test_each_right_for_itself(house: House) -> None:
    assert {ask(house, route, "fraud", KEYS["reader"]).status for route in SEES} == {200}
    assert {ask(house, route, "fraud", KEYS["reader"]).status for route in (*INFERS, *MANAGES)} == {403}
    assert ask(house, MANAGES[0], "risk-eu", KEYS["team-a"]).status == 403
    assert {ask(house, route, "fraud", KEYS["viewer"]).status for route in (*INFERS, *SEES)} == {403}


def test_lists_show_what_may_be_seen(house: House) -> None:
    key = KEYS["team-a"]
    assert ask(house, ANYBODY[3], "", key).json() == {"models": ["fraud", "risk-eu"]}
    assert {one["name"] for one in ask(house, ANYBODY[1], "", key).json()} == {"fraud", "risk-eu"}
    assert {one["name"] for one in ask(house, ANYBODY[2], "", key).json()["model_stats"]} <= {"fraud", "risk-eu"}
    assert "other" not in ask(house, ANYBODY[4], "", key).body.decode()
    assert ask(house, ANYBODY[3], "", KEYS["reader"]).json() == {"models": ["fraud", "other", "risk-eu"]}
    for route in NAMELESS:
        answer = ask(house, route, "", key)
        assert (answer.status, b"fraud, risk-eu" in answer.body, b"other" in answer.body) == (404, True, False)


def unary(channel: grpc.Channel, name: str, key: str = "", /, **fields: Any) -> Any:
    request = message(f"inference.{name}Request")(**fields)
    call = channel.unary_unary(
        f"/inference.GRPCInferenceService/{name}",
        request_serializer=lambda made: made.SerializeToString(),
        response_deserializer=message(f"inference.{name}Response").FromString,
    )
    return call(request, metadata=(("authorization", f"Bearer {key}"),) if key else (), timeout=30)


def tensorflow(channel: grpc.Channel, name: str, key: str, model: str) -> Any:
    """A method of TensorFlow Serving's."""
    request = message(f"tensorflow.serving.{name}Request")()
    request.model_spec.name = model
    if name == "GetModelMetadata":
        request.metadata_field.append("signature_def")
    service = "ModelService" if name == "GetModelStatus" else "PredictionService"
    call = channel.unary_unary(f"/tensorflow.serving.{service}/{name}")
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    return call(request.SerializeToString(), metadata=metadata, timeout=30)


def refused(work: Callable[..., Any], *args: Any, **fields: Any) -> str:
    with pytest.raises(grpc.RpcError) as error:
        work(*args, **fields)
    return error.value.code().name


def infer_message(model: str) -> Any:
    made = message("inference.ModelInferRequest")(model_name=model)
    made.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    made.raw_input_contents.append(np.zeros((1, 2), "<f4").tobytes())
    return made


def infer_fields(model: str) -> dict[str, Any]:
    made = infer_message(model)
    return {"model_name": model, "inputs": list(made.inputs), "raw_input_contents": list(made.raw_input_contents)}


def test_every_method_of_grpc(house: House, channel: grpc.Channel) -> None:
    named = [
        ("ModelInfer", infer_fields),
        ("ModelReady", lambda model: {"name": model}),
        ("ModelMetadata", lambda model: {"name": model}),
        ("ModelConfig", lambda model: {"name": model}),
        ("ModelStatistics", lambda model: {"name": model}),
        ("RepositoryModelLoad", lambda model: {"model_name": model}),
    ]
    for name, fields in [*named, ("ServerMetadata", lambda _: {}), ("RepositoryIndex", lambda _: {})]:
        for key in ("", new_key()):
            assert refused(unary, channel, name, key, **fields("fraud")) == "UNAUTHENTICATED", name
    for name, fields in named:
        assert refused(unary, channel, name, KEYS["team-a"], **fields("other")) == "PERMISSION_DENIED", name
    for name, fields in named[:-1]:
        unary(channel, name, KEYS["team-a"], **fields("fraud"))
    for name in ("GetModelStatus", "GetModelMetadata", "Predict"):
        for key, model, code in (
            ("", "fraud", "UNAUTHENTICATED"), (new_key(), "fraud", "UNAUTHENTICATED"),
            (KEYS["team-a"], "other", "PERMISSION_DENIED"),
        ):  # fmt: skip
            assert refused(tensorflow, channel, name, key, model) == code, name
    for name in ("GetModelStatus", "GetModelMetadata"):
        tensorflow(channel, name, KEYS["team-a"], "fraud")
    assert unary(channel, "ServerLive").live
    assert unary(channel, "ServerReady").ready
    shown = unary(channel, "RepositoryIndex", KEYS["team-a"]).models
    assert {model.name for model in shown} == {"fraud", "risk-eu"}


def test_health_of_the_server_is_open_and_of_a_model_is_not(channel: grpc.Channel) -> None:
    def check(model: str, key: str = "") -> int:
        call = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=lambda made: made.SerializeToString(),
            response_deserializer=message("grpc.health.v1.HealthCheckResponse").FromString,
        )
        metadata = (("x-api-key", key),) if key else ()
        return call(message("grpc.health.v1.HealthCheckRequest")(service=model), metadata=metadata, timeout=30).status

    assert check("") == check("inference.GRPCInferenceService") == check("fraud", KEYS["team-a"]) == 1
    assert refused(lambda: check("fraud")) == "UNAUTHENTICATED"
    assert refused(lambda: check("other", KEYS["team-a"])) == "PERMISSION_DENIED"
    reflect = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
    assert refused(lambda: list(reflect(iter([b""]), timeout=30))) == "UNAUTHENTICATED"


# ---- clients of others, and ours


def test_tritonclient(house: House) -> None:
    import tritonclient.grpc as triton_grpc
    import tritonclient.http as triton_http

    ca = str(house.ca.certificate)
    options = {"ca_certs": ca}
    with triton_http.InferenceServerClient(house.service.http, ssl=True, ssl_options=options) as web:
        made = triton_http.InferInput("x", [1, 2], "FP32").set_data_from_numpy(np.zeros((1, 2), "<f4"))
        answer = web.infer("fraud", [made], headers={"Authorization": f"Bearer {KEYS['team-a']}"})
        assert answer.as_numpy("y").tolist() == [[2, 2]]
    with triton_grpc.InferenceServerClient(house.service.grpc, ssl=True, root_certificates=ca) as rpc:
        asked = triton_grpc.InferInput("x", [1, 2], "FP32").set_data_from_numpy(np.zeros((1, 2), "<f4"))
        answer = rpc.infer("fraud", [asked], headers={"x-api-key": KEYS["team-a"]})
        assert answer.as_numpy("y").tolist() == [[2, 2]]


def test_requests(house: House) -> None:
    import requests

    headers = {"authorization": f"Bearer {KEYS['team-a']}"}
    with requests.Session() as session:
        for _ in range(2):
            answer = session.post(
                f"https://{house.service.http}/v2/models/fraud/infer", json=ROWS, headers=headers,
                verify=str(house.ca.certificate), timeout=30,
            )  # fmt: skip
            assert answer.json()["outputs"][0]["data"] == [2, 2]


async def _awaited(url: str, ca: str) -> Any:
    async with AsyncClient(url, ca=ca) as client:
        return await client.predict("fraud", [[0.0, 0.0]])


def test_our_clients(house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import asyncio

    from octoserve.cli.main import run

    url, ca = f"https://{house.service.http}", str(house.ca.certificate)
    with Client(url, ca=ca, api_key=KEYS["team-a"]) as client:
        assert client.predict("fraud", [[0.0, 0.0]])["y"].tolist() == [[2, 2]]
        with pytest.raises(Forbidden, match="no right on model"):
            client.predict("other", [[0.0, 0.0]])
    with Client(url, ca=ca) as stranger, pytest.raises(Unauthenticated, match="a key or token is wanted"):
        stranger.predict("fraud", [[0.0, 0.0]])
    monkeypatch.setenv("OCTOSERVE_API_KEY", KEYS["team-a"])
    monkeypatch.setenv("OCTOSERVE_CA", ca)
    assert asyncio.run(_awaited(url, ca))["y"].tolist() == [[2, 2]]
    with pytest.raises(SystemExit):
        run(["bench", url, "--model", "fraud", "-d", "0.2", "--warm-up", "0", "-c", "2", "--json"])
    assert json.loads(capsys.readouterr().out)["statuses"].keys() == {"200"}
    monkeypatch.setenv("OCTOSERVE_ADMIN_URL", f"https://localhost:{house.service.ports['admin']}")
    monkeypatch.setenv("OCTOSERVE_ADMIN_TOKEN", KEYS["viewer"])
    with pytest.raises(SystemExit):
        run(["rollout", "status", "fraud", "--json"])
    assert json.loads(capsys.readouterr().out)["endpoint"] == "fraud"


# ---- the admin API


def test_roles(house: House) -> None:
    service = house.service

    def as_(role: str, method: str, path: str, body: Any = None) -> int:
        return service.admin(method, path, body, {"authorization": f"Bearer {KEYS[role]}"})[0]

    assert service.admin("GET", "/livez")[0] == 200
    assert service.admin("GET", "/api/models", headers={"authorization": ""})[0] == 401
    assert service.admin("GET", "/metrics", headers={"authorization": ""})[0] == 200
    assert as_("team-a", "GET", "/api/models") == 403
    assert [as_(role, "GET", "/api/models") for role in ("viewer", "operator", "admin")] == [200] * 3
    start = ("POST", "/api/rollouts/fraud", {"candidate": 1, "reason": "for the audit log"})
    assert [as_(role, *start) for role in ("viewer", "operator")] == [403] * 2
    assert as_("admin", *start) == 201
    assert as_("viewer", "POST", "/api/rollouts/fraud/pause") == 403
    assert as_("operator", "POST", "/api/rollouts/fraud/promote") == 403
    page = service.admin("GET", "/console/fragment", headers={"authorization": f"Bearer {KEYS['operator']}"})[1]
    assert "Promote wants the role admin; yours is operator." in page
    assert "wants the role" not in service.admin("GET", "/console/fragment")[1]
    assert as_("operator", "POST", "/api/rollouts/fraud/abort", {"reason": "seen enough"}) == 202
    until(lambda: service.admin("GET", "/api/rollouts/fraud")[1]["rollout"]["phase"] == "ended", 60, "aborted")


def test_each_change_has_a_line_with_a_name(house: House) -> None:
    """After `test_roles`, and what it did."""
    service = house.service
    keeper = {"authorization": f"Bearer {KEYS['keeper']}"}
    assert service.ask("POST", "/v2/repository/models/risk-eu/unload", headers=keeper).status == 200
    assert service.ask("POST", "/v2/repository/models/risk-eu/load", headers=keeper).status == 200
    assert service.admin("PUT", "/api/models/other/labels/good", {"version": 1})[0] == 200
    assert service.admin("DELETE", "/api/models/other/labels/good")[0] == 200
    with contextlib.closing(SqliteStore(service.state_dir)) as store:
        lines = {model: [json.loads(x) for x in store.lines(model)] for model in ("fraud", "risk-eu", "other")}
        assert {model: store.verify(model) for model in lines} == dict.fromkeys(lines)
    said = {model: [(x["who"], x["event"]) for x in entries] for model, entries in lines.items()}
    assert [pair for pair in said["risk-eu"] if pair[1] in ("load", "unload")] == [
        ("keeper", "unload"),
        ("keeper", "load"),
    ]
    assert said["other"] == [("the-admin", "label"), ("the-admin", "unlabel")]
    assert ("the-admin", "started") in said["fraud"]
    assert ("the-operator", "aborting") in said["fraud"]


# ---- rotation


class Askers:
    """Ask without a pause with whatever credential is current; each answer must be 200.

    moving: a worker leaves meanwhile, so connections may end between two answers
    """

    def __init__(self, house: House, credential: Callable[[], str], moving: bool = False) -> None:
        self.house, self.credential = house, credential
        self.answered = 0
        self.wrong: list[str] = []
        self._lost = (OSError, http.client.HTTPException) if moving else ()
        self._stop = threading.Event()
        works = (self._kept, self._fresh, self._called)
        self._threads = [threading.Thread(target=self._run, args=(work,)) for work in works]

    def __enter__(self) -> Askers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int = 30) -> None:
        """Wait for so many more answers."""
        wanted = self.answered + count
        until(lambda: self.answered >= wanted or self.wrong, 60, "answers")

    def _run(self, work: Callable[[contextlib.ExitStack], Callable[[str], int]]) -> None:
        with contextlib.ExitStack() as closing:
            ask = work(closing)
            while not self._stop.is_set():
                try:
                    status = ask(self.credential())
                except self._lost:
                    ask = work(closing)
                    continue
                except Exception as error:
                    self.wrong.append(f"{work.__name__}: {type(error).__name__}: {error}")
                    return
                if status != 200:
                    self.wrong.append(f"{work.__name__}: {status}")
                self.answered += 1
                time.sleep(0.005)

    def _kept(self, closing: contextlib.ExitStack) -> Callable[[str], int]:
        connection = closing.enter_context(contextlib.closing(self.house.service.connect()))
        return lambda credential: self.house.service.infer("fraud", connection, credential)[0]

    def _fresh(self, closing: contextlib.ExitStack) -> Callable[[str], int]:
        return lambda credential: self.house.service.infer("fraud", None, credential)[0]

    def _called(self, closing: contextlib.ExitStack) -> Callable[[str], int]:
        root = grpc.ssl_channel_credentials(self.house.ca.certificate.read_bytes())
        channel = closing.enter_context(grpc.secure_channel(self.house.service.grpc, root))

        def ask(credential: str) -> int:
            unary(channel, "ModelInfer", credential, **infer_fields("fraud"))
            return 200

        return ask


def test_a_key_rotation_leaves_the_service_answering(house: House) -> None:
    old, new = new_key(), new_key()
    rights = {"models": ["fraud"]}
    house.keys(entry(old, "team-b", **rights))
    until(lambda: house.takes(old), 60, "the first key")
    current = [old]
    with Askers(house, lambda: current[0]) as askers:
        askers.more()
        house.keys(entry(old, "team-b", **rights), entry(new, "team-b", **rights))
        until(lambda: house.takes(new), 60, "both keys")
        askers.more()
        current[0] = new
        askers.more()
        touch(house.folder / "keys.yaml", "keys: [ this is no file of keys")
        until(lambda: house.service.total("octoserve_security_stale", what="security.keys") == 2, 60, "it is said")
        askers.more()
        house.keys(entry(new, "team-b", **rights))
        until(lambda: house.refuses(old), 60, "the old key is nothing")
        askers.more()
    assert askers.wrong == []
    assert house.service.total("octoserve_security_stale") == 0
    assert "what was read before stays in force" in house.service.output()
    assert house.service.total("octoserve_security_reloads_total", what="security.keys", outcome="refused") == 2


def test_a_stream_ends_its_rights_with_its_key(house: House, channel: grpc.Channel) -> None:
    key = new_key()
    house.keys(entry(key, "team-c", models=["fraud"]))
    until(lambda: house.takes(key), 60, "the key")
    turn: list[Any] = []
    more = threading.Semaphore(0)

    def requests() -> Iterator[bytes]:
        while True:
            more.acquire()
            yield turn.pop(0).SerializeToString()

    stream = channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        response_deserializer=message("inference.ModelStreamInferResponse").FromString,
    )(requests(), metadata=(("x-api-key", key),), timeout=120)

    def asked(model: str) -> str:
        turn.append(infer_message(model))
        more.release()
        return str(next(stream).error_message)

    assert asked("fraud") == ""
    assert "no right on model" in asked("other")
    house.keys()
    until(lambda: asked("fraud") == "this key is not known here", 60, "the key is nothing")
    stream.cancel()


def test_the_providers_keys_change_and_it_goes_away(house: House) -> None:
    provider, authority = house.provider, house.authority

    def token(kid: str) -> str:
        return authority.token(kid, time.time(), models=["fraud"], exp=time.time() + 600)

    first = token("ES256")
    assert house.takes(first)
    assert house.status(first, "/v2/models/other") == 403
    expired = authority.token("ES256", time.time() - 3600)
    answer = house.service.ask("GET", "/v2", headers={"authorization": f"Bearer {expired}"})
    assert (answer.status, "expired" in answer.body.decode()) == (401, True)
    assert answer.headers["www-authenticate"] == 'Bearer realm="octoserve", error="invalid_token"'
    for forged in authority.forged(time.time()):
        assert house.status(forged) == 401
    with Askers(house, lambda: first) as askers:
        askers.more()
        authority.add("ES256", "next")
        second = token("next")
        assert house.status(second) == 401
        provider.content = authority.jwks()
        until(lambda: house.takes(second), 60, "the new key was asked for")
        provider.status = 503
        lost = Authority("ES256").token("ES256", time.time(), header={"kid": "unheard"})
        seen = provider.asked
        until(lambda: house.status(lost) == 401 and provider.asked > seen, 60, "asked in vain")
        askers.more()
    assert askers.wrong == []
    assert house.takes(second)
    until(lambda: "the keys that are known go on" in house.service.output(), 60, "it is said")
    provider.status = 200


def test_a_certificate_is_replaced_under_open_connections(house: House) -> None:
    def serial(connection: http.client.HTTPSConnection | None = None) -> str:
        mine = connection or house.service.connect()
        mine.request("GET", "/v2/health/ready")
        mine.getresponse().read()
        return str(mine.sock.getpeercert()["serialNumber"])

    kept = house.service.connect()
    before = serial(kept)
    with Askers(house, lambda: KEYS["team-a"]) as askers:
        askers.more()
        house.ca.issue("server", serial=7)
        # So many that no worker is left out: one that has not looked yet would find what comes next instead.
        until(lambda: all(serial() == "07" for _ in range(40)), 60, "new connections have the new one")
        assert serial(kept) == before
        askers.more()
        touch(house.folder / "tls" / "server.key", "no key")
        until(lambda: house.service.total("octoserve_security_stale", what="security.tls") == 2, 60, "it is said")
        assert serial() == "07"
        askers.more()
        house.ca.issue("server", serial=8)
        until(lambda: all(serial() == "08" for _ in range(40)), 60, "a good one after it")
    assert askers.wrong == []
    port = house.service.ports["admin"]
    until(lambda: _serial_at(port, house.service.tls) == "08", 60, "the admin port has it too")


def _serial_at(port: int, tls: ssl.SSLContext) -> str:
    connection = http.client.HTTPSConnection("localhost", port, timeout=30, context=tls)
    with contextlib.closing(connection):
        connection.connect()
        return str(connection.sock.getpeercert()["serialNumber"])


def _ready_at(port: int, tls: ssl.SSLContext) -> int:
    connection = http.client.HTTPSConnection("localhost", port, timeout=30, context=tls)
    with contextlib.closing(connection):
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status


def test_old_versions_of_tls_are_refused(house: House) -> None:
    old = client_context(str(house.ca.certificate))
    old.set_ciphers("DEFAULT@SECLEVEL=0")
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    for door in ("http", "grpc", "admin"):
        with pytest.raises(ssl.SSLError):
            _serial_at(house.service.ports[door], old)


def test_a_secret_is_nowhere(house: House) -> None:
    """After all of the above: in no output, metric, file of the state directory, process listing."""
    service = house.service
    told = service.output().encode() + service.admin("GET", "/metrics")[1].encode()
    for path in service.state_dir.rglob("*"):
        if path.is_file():
            told += path.read_bytes()
    for process in [psutil.Process(service.process.pid), *psutil.Process(service.process.pid).children(True)]:
        told += " ".join(process.cmdline()).encode() + json.dumps(process.environ()).encode()
    for name, key in KEYS.items():
        assert key.encode() not in told, name
    assert b"octo_" not in told
    assert b"eyJ" not in told


# ---- mutual TLS, and a worker that starts beside a broken file


def test_mutual_tls(tmp_path: Path) -> None:
    """Also: the service tries a candidate by itself, with a certificate that nobody gave it and a key that it lacks."""
    ca, others = Ca(tmp_path / "tls"), Ca(tmp_path / "others")
    ca.issue("server")
    client, key = ca.issue("client")
    publish(tmp_path / "models", "fraud", 1)
    golden = {"inputs": ROWS["inputs"], "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [2, 2]}]}
    candidate = publish(tmp_path / "models", "fraud", 2)
    (candidate / "golden.json").write_text(json.dumps([golden]))
    keys_file(
        tmp_path / "keys.yaml", entry(KEYS["team-a"], "team-a", models=["*"]), entry(KEYS["admin"], "a", role="admin")
    )
    spec = (
        f"version_policy: all\nsecurity: {{tls: {{certificate: {tmp_path}/tls/server.crt, "
        f"key: {tmp_path}/tls/server.key, client_ca: {ca.certificate}}}, keys: {tmp_path}/keys.yaml}}\n"
        "rollout: {strategy: blue-green, on_new_version: hold}\n"
    )
    tls = client_context(str(ca.certificate), str(client), str(key))
    with secured(tmp_path, tmp_path / "models", spec, tls, KEYS["team-a"], KEYS["admin"], SERVE, workers=1) as service:
        assert service.infer("fraud")[0] == 200
        root, mine = ca.certificate.read_bytes(), (key.read_bytes(), client.read_bytes())
        with grpc.secure_channel(service.grpc, grpc.ssl_channel_credentials(root, *mine)) as channel:
            unary(channel, "ModelInfer", KEYS["team-a"], **infer_fields("fraud"))
        with grpc.secure_channel(service.grpc, grpc.ssl_channel_credentials(root)) as channel:
            assert refused(lambda: unary(channel, "ServerLive")) == "UNAVAILABLE"
        eve = client_context(str(ca.certificate), *map(str, others.issue("eve")))
        nobody = client_context(str(ca.certificate))
        for stranger in (eve, nobody):
            with pytest.raises((ssl.SSLError, ConnectionError)):  # RemoteDisconnected is a ConnectionError
                _ready_at(service.ports["http"], stranger)
        service.tls = nobody  # probes reach the admin port without one
        assert service.admin("GET", "/readyz")[0] == 200
        assert service.admin("POST", "/api/rollouts/fraud", {"candidate": 1})[0] == 201
        until(
            lambda: service.admin("GET", "/api/rollouts/fraud")[1]["rollout"]["phase"] in ("promoting", "retaining"), 60
        )


def test_a_worker_that_finds_no_certificate_leaves_the_answering_to_others(house: House) -> None:
    """The last one: it breaks the files and a worker."""
    touch(house.folder / "tls" / "server.crt", "no certificate")
    until(lambda: house.service.total("octoserve_security_stale", what="security.tls") == 2, 60, "it is said")
    with Askers(house, lambda: KEYS["team-a"], moving=True) as askers:
        askers.more()
        victim = house.service.worker_pids()[0]
        os.kill(victim, 15)  # it drains, as in a restart
        until(lambda: victim not in house.service.worker_pids(), 60, "another one in its place")
        until(lambda: house.service.output().count("nothing is served until then") > 0, 60, "which waits")
        askers.more()
        house.ca.issue("server", serial=9)
        until(lambda: house.service.all_serve(2), 60, "it opens its doors")
        askers.more()
    assert askers.wrong == []
