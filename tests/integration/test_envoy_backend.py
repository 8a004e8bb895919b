"""What only a real Envoy can get wrong: flips, mirrors, clients' headers, and what outlives what."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest
from msgspec import structs

from octoserve.core.errors import SettingsError, Unavailable
from octoserve.core.evidence import CANDIDATE, STABLE
from octoserve.routing.backends import envoy as envoy_module
from octoserve.routing.backends.envoy import EnvoyBackend
from octoserve.routing.backends.envoy_config import EnvoySettings, plans_in
from octoserve.routing.backends.envoy_process import EnvoyProcess, envoy_binary
from octoserve.routing.plan import BUCKETS, SHADOW, MirrorTo, RoutePlan, split_arms
from octoserve.routing.split import arm_of, bucket_of, pick
from support.loops import drive
from support.routing_rigs import ENDPOINT, KEY, PATH, VERSIONS, EnvoyRig, canary, keys, needs_envoy
from support.scale import scale
from support.upstreams import DEAF, FAILS, HANGS, GrpcUpstream, PlainClient, Upstream, UpstreamThread, wait_until


def count_of(envoy: EnvoyRig, version: int, role: str) -> int:
    """Requests that Envoy has sent to a version in a role."""
    counts = drive(envoy.backend.observe()).counts
    return sum(arm.requests for arm in counts if (arm.version, arm.role) == (version, role))


@needs_envoy
def test_flips_of_an_envoy_are_seen_soon(envoy: EnvoyRig) -> None:
    times = []
    clients = [PlainClient(envoy.address) for _ in range(4)]
    for number in range(scale(200, 1_000)):
        version = 2 - number % 2
        start = time.perf_counter()
        drive(envoy.backend.apply(RoutePlan.to(ENDPOINT, version, envoy.next_generation())))
        for client in clients:
            assert client.ask(PATH) == (200, f"v{version} stable {version}")
        times.append(time.perf_counter() - start)
    for client in clients:
        client._socket.close()
    times.sort()
    p99 = times[int(len(times) * 0.99)]
    print(f"flips: {len(times)}, p50 {times[len(times) // 2] * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms")
    assert p99 <= 0.25


@needs_envoy
def test_no_request_fails_while_an_envoy_flips(envoy: EnvoyRig) -> None:
    stop = threading.Event()
    seen: Counter[tuple[int, str]] = Counter()
    failed: list[BaseException] = []

    def hammer() -> None:
        try:
            with PlainClient(envoy.address) as client:
                while not stop.is_set():
                    seen[client.ask(PATH)] += 1
        except BaseException as error:
            failed.append(error)

    drive(envoy.backend.apply(RoutePlan.to(ENDPOINT, 1, envoy.next_generation())))
    threads = [threading.Thread(target=hammer) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(scale(30, 1_000)):
        drive(envoy.backend.apply(RoutePlan.to(ENDPOINT, 2 - number % 2, envoy.next_generation())))
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == []
    assert set(seen) == {(200, "v1 stable 1"), (200, "v2 stable 2")}


@needs_envoy
def test_clients_do_not_choose_their_arm(envoy: EnvoyRig) -> None:
    drive(envoy.backend.apply(canary(envoy, 0, overrides={"tester": 2})))
    mine = {
        "x-octoserve-arm": b"candidate",
        "X-Octoserve-Version": b"2",
        "x-octoserve-shadow": b"true",
    }
    assert envoy.client.ask(PATH, mine) == (200, "v1 stable 1")
    assert envoy.client.ask(PATH, {**mine, "x-user": b"tester"}) == (200, "v2 override 2")
    assert all("x-octoserve-shadow" not in request.headers for request in envoy.upstreams[1].requests[-1:])
    assert envoy.client.ask(f"/v2/models/{ENDPOINT}", mine) == (200, "v1 - -")
    assert envoy.client.ask(f"/v2/models/{ENDPOINT}/versions/3/infer", mine) == (200, "v3 - -")
    assert envoy.client.ask(f"/v2/models/{ENDPOINT}/versions/9/infer", mine)[0] == 404
    assert envoy.client.ask("/v2/models/another/infer", mine)[0] == 404


@needs_envoy
def test_a_version_that_nobody_answers_for_is_refused(envoy: EnvoyRig) -> None:
    plan = canary(envoy, 1_000)
    drive(envoy.backend.apply(plan))
    for unknown in (
        RoutePlan.to(ENDPOINT, 9, envoy.next_generation()),
        canary(envoy, 1_000, mirrors=(MirrorTo(9, 100),)),
        canary(envoy, 1_000, overrides={"tester": 9}),
    ):
        with pytest.raises(SettingsError, match="version 9"):
            drive(envoy.backend.apply(unknown))
    assert drive(envoy.backend.observe()).plans[ENDPOINT].generation == plan.generation


@needs_envoy
@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (RoutePlan(ENDPOINT, 10**6, split_arms(1, 2, 100), key="input:customer"), "header:NAME only"),
        (RoutePlan(ENDPOINT, 10**6, split_arms(1, 2, 0), mirrors=(MirrorTo(2, 100, 10),)), "thrown away"),
        (RoutePlan(ENDPOINT, 10**6, split_arms(1, 2, 0), segments=("header:x-country",)), "segments"),
        (RoutePlan(ENDPOINT, 10**6, split_arms(1, 2, 0), key=KEY, overrides={"a\nb": 2}), "header's value"),
    ],
)
def test_an_envoy_refuses_what_it_cannot_do(envoy: EnvoyRig, plan: RoutePlan, says: str) -> None:
    before = (envoy.folder / "routes.json").read_bytes()
    with pytest.raises(SettingsError, match=says):
        drive(envoy.backend.apply(plan))
    assert (envoy.folder / "routes.json").read_bytes() == before


# --- mirrors ---------------------------------------------------------------------------------------------


@needs_envoy
def test_mirrors_reach_the_shadow_and_say_that_they_are_copies(envoy: EnvoyRig) -> None:
    shadow = envoy.upstreams[3]
    drive(envoy.backend.apply(canary(envoy, 0, mirrors=(MirrorTo(3, BUCKETS),))))
    before = len(shadow.requests)
    asked = 200
    assert {envoy.ask(key) for key in keys(asked)} == {(STABLE, 1)}
    wait_until(lambda: len(shadow.requests) == before + asked)
    copy = shadow.requests[-1]
    assert copy.path == PATH
    assert copy.headers["x-octoserve-shadow"] == "true"
    assert copy.headers["x-octoserve-arm"] == "shadow"
    assert copy.headers["x-octoserve-version"] == "3"
    assert copy.headers["host"] == "x"


@needs_envoy
def test_a_mirror_has_its_share_of_what_the_candidate_did_not_answer(envoy: EnvoyRig) -> None:
    drive(envoy.backend.apply(canary(envoy, 5_000, mirrors=(MirrorTo(2, 3_000),))))
    before = count_of(envoy, 2, SHADOW)
    roles = Counter(envoy.ask(b"c%d" % number)[0] for number in range(scale(2_000, 20_000)))
    copies = count_of(envoy, 2, SHADOW) - before
    assert abs(copies / roles[STABLE] - 0.3) <= 5 * math.sqrt(0.3 * 0.7 / roles[STABLE])
    # All to the candidate: nothing is left to be copied.
    drive(envoy.backend.apply(canary(envoy, BUCKETS, mirrors=(MirrorTo(2, BUCKETS),))))
    before = count_of(envoy, 2, SHADOW)
    assert {envoy.ask(key)[0] for key in keys(100)} == {CANDIDATE}
    assert count_of(envoy, 2, SHADOW) == before


@needs_envoy
@pytest.mark.parametrize("behaviour", [HANGS, FAILS, DEAF, "dead"])
def test_a_bad_shadow_costs_the_primary_nothing(
    behaviour: str, envoy: EnvoyRig, thread: UpstreamThread, tmp_path: Path
) -> None:
    """Bodies of 12 MB too: a shadow that does not read them must not hold up who does."""
    shadow = Upstream(thread, "v3", behaviour)
    address = shadow.address
    if behaviour == "dead":
        shadow.close()
    settings = structs.replace(
        envoy.settings, http={**envoy.settings.http, 3: (address,)}, shadow_concurrency=8, shadow_timeout=0.5
    )
    backend = EnvoyBackend(tmp_path, settings)
    process = drive(EnvoyProcess.start(backend, concurrency=2))
    try:
        plan = RoutePlan(ENDPOINT, 1, split_arms(1, 3, 0), mirrors=(MirrorTo(3, BUCKETS),))
        drive(backend.apply(plan))
        small, large = b"x" * 200, bytes(12 << 20)
        times = []
        with PlainClient(drive(backend.admin.listening_on()), timeout=5.0) as client:
            for number in range(scale(60, 2_000)):
                start = time.perf_counter()
                assert client.ask(PATH, body=large if number % 20 == 10 else small) == (200, "v1 stable 1")
                times.append(time.perf_counter() - start)
        assert max(times) < 1.5
        assert drive(backend.observe()).counts
        # Each copy has an end, that of a shadow's that does nothing is its time-out; none is unaccounted for.
        assert drive(backend.drain(ENDPOINT, 3, time.monotonic() + 5)) == 0
        counts = drive(backend.observe()).counts
        copies = next(arm for arm in counts if (arm.version, arm.role) == (3, SHADOW))
        assert copies.requests == (0 if behaviour == "dead" else len(times) - copies.dropped)
        assert copies.errors == len(times) - copies.dropped
    finally:
        drive(process.stop())


# --- what outlives what ----------------------------------------------------------------------------------


@needs_envoy
def test_plans_outlive_the_backend_and_the_envoy(envoy: EnvoyRig, tmp_path: Path) -> None:
    backend = EnvoyBackend(tmp_path, envoy.settings)
    plan = RoutePlan(ENDPOINT, 5, split_arms(1, 2, 4_000), seed="s", key=KEY)
    other = RoutePlan.to("other one", 3, 8)
    process = drive(EnvoyProcess.start(backend, concurrency=1))
    try:
        drive(backend.apply(plan))
        drive(backend.apply(other))
        again = EnvoyBackend(tmp_path, envoy.settings)
        with pytest.raises(SettingsError, match="generation 4 came after 5"):
            drive(again.apply(RoutePlan.to(ENDPOINT, 1, 4)))
        drive(again.apply(plan))
        drive(process.stop())
        with pytest.raises(Unavailable):
            drive(again.observe())
        process = drive(EnvoyProcess.start(again, concurrency=1))
        observed = drive(again.observe())
        assert {name: now.generation for name, now in observed.plans.items()} == {ENDPOINT: 5, "other one": 8}
        with PlainClient(drive(again.admin.listening_on())) as client:
            for key in keys(50):
                assert client.ask(PATH, {"x-user": key})[1].startswith(f"v{pick(plan, key)} ")
            assert client.ask("/v2/models/other%20one/infer") == (200, "v3 stable 3")
    finally:
        drive(process.stop())


@needs_envoy
def test_an_envoy_that_outlived_its_starter_is_taken_over(envoy: EnvoyRig, tmp_path: Path) -> None:
    backend = EnvoyBackend(tmp_path, envoy.settings)
    first = drive(EnvoyProcess.start(backend, concurrency=1))
    drive(backend.apply(RoutePlan.to(ENDPOINT, 2, 1)))
    address = drive(backend.admin.listening_on())
    again = EnvoyBackend(tmp_path, envoy.settings)
    second = drive(EnvoyProcess.start(again, concurrency=1))
    try:
        assert second.adopted
        assert drive(again.admin.listening_on()) == address
        drive(again.apply(RoutePlan.to(ENDPOINT, 3, 2)))
        with PlainClient(address) as client:
            assert client.ask(PATH) == (200, "v3 stable 3")
        # Started with another bootstrap: replaced.
        other = EnvoyBackend(tmp_path, structs.replace(envoy.settings, listen="127.0.0.2:0"))
        third = drive(EnvoyProcess.start(other, concurrency=1))
        assert not third.adopted
        assert drive(other.admin.listening_on()).startswith("127.0.0.2:")
        drive(third.stop())
        assert not drive(third.ready())
    finally:
        drive(second.stop())
        drive(first.stop())


@needs_envoy
def test_an_envoy_that_is_down_is_told_when_it_is_back(envoy: EnvoyRig, tmp_path: Path) -> None:
    backend = EnvoyBackend(tmp_path, envoy.settings, timeout=0.2)
    plan = RoutePlan.to(ENDPOINT, 2, 1)
    with pytest.raises(Unavailable):
        drive(backend.apply(plan))
    process = drive(EnvoyProcess.start(backend, concurrency=1))
    try:
        drive(backend.apply(plan))
        with PlainClient(drive(backend.admin.listening_on())) as client:
            assert client.ask(PATH) == (200, "v2 stable 2")
    finally:
        drive(process.stop())


@needs_envoy
def test_routes_that_envoy_rejects_leave_those_it_had(envoy: EnvoyRig, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = canary(envoy, 3_000)
    drive(envoy.backend.apply(plan))
    write = envoy_module.route_resource

    def spoilt(plans: Iterable[RoutePlan], settings: EnvoySettings) -> dict[str, Any]:
        resource = write(plans, settings)
        if max(kept.generation for kept in plans) > plan.generation:
            resource["virtual_hosts"][0]["routes"][0]["route"]["request_mirror_policies"] = [{"cluster": "nowhere"}]
        return resource

    monkeypatch.setattr(envoy_module, "route_resource", spoilt)
    with pytest.raises(SettingsError, match="rejected"):
        drive(envoy.backend.apply(canary(envoy, 4_000)))
    assert drive(envoy.backend.observe()).plans[ENDPOINT].arms == plan.arms
    assert plans_in(json.loads((envoy.folder / "routes.json").read_bytes())["resources"][0]) == [plan]
    monkeypatch.undo()
    drive(envoy.backend.apply(canary(envoy, 5_000)))


@needs_envoy
def test_clusters_of_a_drained_version_go(envoy: EnvoyRig, tmp_path: Path) -> None:
    settings = structs.replace(envoy.settings, http=(envoy.upstreams[1].address,))
    backend = EnvoyBackend(tmp_path, settings)
    process = drive(EnvoyProcess.start(backend, concurrency=1))
    try:
        for version in (1, 2, 3):
            drive(backend.apply(RoutePlan.to(ENDPOINT, version, version)))
            assert drive(backend.drain(ENDPOINT, version - 1, time.monotonic() + 5)) == 0
        wait_until(lambda: drive(backend.admin.active_clusters()) == {"other", "iris/3/stable", "iris/3/baseline"})
        assert drive(backend.observe()).plans[ENDPOINT].generation == 3
    finally:
        drive(process.stop())


@needs_envoy
def test_grpc_is_split_by_metadata(envoy: EnvoyRig, tmp_path: Path) -> None:
    upstreams = {version: GrpcUpstream(f"v{version}") for version in VERSIONS}
    settings = structs.replace(
        envoy.settings,
        grpc={version: (upstream.address,) for version, upstream in upstreams.items()},
        grpc_endpoint=ENDPOINT,
    )
    backend = EnvoyBackend(tmp_path, settings)
    process = drive(EnvoyProcess.start(backend, concurrency=1))
    try:
        plan = RoutePlan(
            ENDPOINT, 1, split_arms(1, 2, 4_000), "s", KEY, (MirrorTo(3, BUCKETS),), overrides={"tester": 2}
        )
        drive(backend.apply(plan))
        with grpc.insecure_channel(drive(backend.admin.listening_on())) as channel:
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            for key in keys(101)[11:]:
                arm = arm_of(plan, bucket_of(plan.seed, key))
                answer = infer(b"", metadata=[("x-user", key.decode()), ("x-octoserve-arm", "mine")], timeout=5)
                assert answer.decode() == f"v{arm.version} {arm.role} {arm.version}"
            assert infer(b"", metadata=[("x-user", "tester")], timeout=5) == b"v2 override 2"
            version_1 = sum(request["x-octoserve-arm"] == STABLE for request in upstreams[1].requests)
            wait_until(lambda: len(upstreams[3].requests) == version_1)
            assert all(request["x-octoserve-shadow"] == "true" for request in upstreams[3].requests)
    finally:
        drive(process.stop())
        for upstream in upstreams.values():
            upstream.stop()


@needs_envoy
def test_grpc_of_several_endpoints_is_split_by_what_its_metadata_names(tmp_path: Path) -> None:
    upstream = GrpcUpstream("all")
    settings = EnvoySettings(
        listen="127.0.0.1:0", http=("127.0.0.1:9",), grpc=(upstream.address,), grpc_endpoint="wine"
    )
    backend = EnvoyBackend(tmp_path, settings)
    process = drive(EnvoyProcess.start(backend, concurrency=1))
    try:
        drive(backend.apply(RoutePlan("wine", 1, split_arms(1, 2, 0), "s")))
        drive(backend.apply(RoutePlan("iris", 2, split_arms(1, 2, BUCKETS), "s", KEY, overrides={"tester": 1})))
        with grpc.insecure_channel(drive(backend.admin.listening_on())) as channel:
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

            def drawn(*metadata: tuple[str, str]) -> tuple[str, str]:
                infer(b"", metadata=metadata, timeout=5)
                told = upstream.requests[-1]
                return told["x-octoserve-endpoint"], told["x-octoserve-arm"]

            named = ("x-octoserve-endpoint", "iris")
            assert drawn(named, ("x-user", "someone")) == ("iris", "candidate")
            assert drawn(named, ("x-user", "tester")) == ("iris", "override")
            assert drawn(("x-octoserve-endpoint", "wine")) == ("wine", "stable")
            assert drawn() == drawn(("x-octoserve-endpoint", "other")) == ("wine", "stable")
    finally:
        drive(process.stop())
        upstream.stop()


def test_an_envoy_that_is_not_there_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "envoy", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match=r"octoserve\[envoy\]"):
        envoy_binary()
    with pytest.raises(SettingsError, match="no program"):
        envoy_binary("/nowhere/envoy")


@needs_envoy
def test_an_envoy_that_cannot_start_says_why(envoy: EnvoyRig, tmp_path: Path) -> None:
    backend = EnvoyBackend(tmp_path, structs.replace(envoy.settings, listen=envoy.address))
    (tmp_path / "envoy.json").write_text('{"nonsense": 1}')
    with pytest.raises(Unavailable, match="nonsense"):
        drive(EnvoyProcess.start(backend))
