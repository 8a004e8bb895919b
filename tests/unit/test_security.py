"""Callers, keys, tokens, watched files: who is let in, by which words others are refused, and what a change does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from octoserve.core.errors import Forbidden, OctoserveError, SettingsError, Unauthenticated, Unavailable
from octoserve.patterns.online.guarding import MISSED_SECONDS, Rarely
from octoserve.patterns.online.http.door import HttpDoor
from octoserve.patterns.online.http.head import Head, parse_head
from octoserve.patterns.online.http.infer_head import InferHead
from octoserve.patterns.online.http.routes import allow, seen_by
from octoserve.patterns.online.http.sagemaker_door import SagemakerDoor
from octoserve.patterns.online.supervisor.admin_guards import needed_role
from octoserve.security.access import Access
from octoserve.security.caller import ADMIN, INFER, MANAGE, OPERATOR, SEE, VIEWER, Caller
from octoserve.security.guard import Guard
from octoserve.security.keys import digest_of, new_key, parse_keys, read_keys
from octoserve.security.settings import Jwt, Security
from octoserve.security.tokens import TokenVerifier, public_keys
from octoserve.security.watched import Watched
from octoserve.telemetry.metrics import Registry
from support.security import ISSUER, Authority, entry, keys_file, touch

KEY = new_key()


def line(**changed: Any) -> str:
    return json.dumps({"keys": [entry(KEY, "ada", **changed)]})


# ---- callers


@pytest.mark.parametrize(
    ("patterns", "model", "sees"),
    [
        (["fraud"], "fraud", True),
        (["fraud"], "fraud2", False),
        (["risk-*"], "risk-", True),
        (["risk-*"], "a-risk-b", False),
        (["*"], "anything\nat all", True),
        ([], "fraud", False),
        (["a.c"], "abc", False),
        (["[ab]"], "a", False),
        (["[ab]"], "[ab]", True),
        (["*-eu-*"], "x-eu-y", True),
    ],
)
def test_models_by_name_and_star(patterns, model, sees):
    assert Caller("ada", patterns).sees(model) is sees
    assert Caller("ada", patterns).sees(model) is sees


@given(st.lists(st.text(max_size=5), max_size=4), st.text(max_size=5))
def test_a_name_without_a_star_is_that_name_alone(names, model):
    names = [name.replace("*", "") for name in names]
    assert Caller("ada", names).sees(model) is (model in names)


def test_a_right_includes_to_see_and_no_other_right():
    caller = Caller("ada", ["m"], [INFER])
    caller.check(SEE, "m")
    caller.check(INFER, "m")
    with pytest.raises(Forbidden, match="may not manage model 'm'; may: infer"):
        caller.check(MANAGE, "m")
    with pytest.raises(Forbidden, match="no right on model 'x'"):
        caller.check(SEE, "x")


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("GET", "/api/models", VIEWER),
        ("HEAD", "/console/fragment", VIEWER),
        ("POST", "/api/rollouts/m/approve", OPERATOR),
        ("POST", "/api/rollouts/m/abort", OPERATOR),
        ("POST", "/api/rollouts/m/follow", OPERATOR),
        ("POST", "/api/rollouts/m/promote", ADMIN),
        ("POST", "/api/rollouts/approve", ADMIN),
        ("POST", "/api/rollouts/m/x/approve", ADMIN),
        ("POST", "/api/models/m/load", ADMIN),
        ("PUT", "/api/models/m/labels/approve", ADMIN),
        ("DELETE", "/what/comes/later", ADMIN),
    ],
)
def test_the_role_that_is_wanted(method, path, role):
    assert needed_role(method, path) == role


def test_roles_include_the_ones_before():
    callers = [Caller("x", role=role) for role in ("", VIEWER, OPERATOR, ADMIN)]
    reached = {caller.role: [caller.reaches(role) for role in (VIEWER, OPERATOR, ADMIN)] for caller in callers}
    assert reached == {
        "": [False] * 3, VIEWER: [True, False, False], OPERATOR: [True, True, False], ADMIN: [True] * 3
    }  # fmt: skip


# ---- keys


def test_a_key_is_found_by_its_hash_in_either_header():
    ring = parse_keys(line(models=["m"]), "f")
    access = Access(lambda: ring)
    for headers in ({"authorization": f"Bearer {KEY}"}, {"authorization": f"bearer  {KEY} "}, {"x-api-key": KEY}):
        assert access.caller(headers).name == "ada"


@pytest.mark.parametrize(
    ("headers", "given"),
    [
        ({}, False),
        ({"authorization": ""}, False),
        ({"authorization": "Bearer "}, False),
        ({"authorization": f"Basic {KEY}"}, False),
        ({"authorization": f"Basic {KEY}", "x-api-key": KEY}, False),
        ({"authorization": f"Bearer {KEY[:-1]}"}, True),
        ({"authorization": f"Bearer {KEY}, Bearer {KEY}"}, True),
        ({"x-api-key": "\u00e9" * 9}, True),
        ({"x-api-key": "a.b.c"}, True),
    ],
)
def test_others_are_nobody(headers, given):
    ring = parse_keys(line(models=["m"]), "f")
    with pytest.raises(Unauthenticated) as refused:
        Access(lambda: ring).caller(headers)
    assert refused.value.given is given
    assert KEY[:10] not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("keys: [", "not YAML"),
        ("keys: 3", "Expected `array`"),
        ("kees: []", "unknown field `kees`"),
        (json.dumps({"keys": [{"name": "a", "sha256": KEY, "models": ["m"]}]}), "key 1: sha256: 64 hex digits"),
        (line(may=["fly"]), "key 1: may: some of infer, read, manage"),
        (line(may=[]), "key 1: may"),
        (line(role="king"), "role: one of viewer, operator, admin"),
        (line(models=[]), "models, or a role, wanted"),
        (line(models="m"), "Expected `array`"),
        (json.dumps({"keys": [entry(KEY, "a", models=["m"]), entry(KEY, "b", models=["m"])]}), "key 2: this sha256 is"),
        (json.dumps({"keys": [entry(KEY, "", models=["m"])]}), "name: "),
        (f"keys:\n  - {{name: a, sha256: '{KEY}\n", "not YAML"),
    ],
)
def test_a_file_that_is_wrong_says_where_and_repeats_no_key(text, wanted):
    with pytest.raises(SettingsError, match=r"security\.keys: f") as refused:
        parse_keys(text, "f")
    assert wanted in str(refused.value)
    assert KEY not in str(refused.value)


def test_an_empty_file_lets_nobody_in(tmp_path: Path):
    (tmp_path / "keys.yaml").write_text("")
    assert read_keys(tmp_path / "keys.yaml") == {}
    with pytest.raises(SettingsError, match="cannot read"):
        read_keys(tmp_path / "none.yaml")


# ---- watched files


def test_what_cannot_be_read_leaves_the_last_one_and_is_told_once(tmp_path: Path, caplog):
    told: list[tuple[str, bool]] = []
    path = keys_file(tmp_path / "keys.yaml", entry(KEY, "ada", models=["m"]))
    guard = Guard(Security(keys=str(path)), told=lambda *w: told.append(w))
    guard.open()
    assert guard.access is not None
    headers = {"x-api-key": KEY}
    assert not guard.look()
    assert told == []

    touch(path, "keys: [")
    guard.look()
    guard.look()
    assert guard.access.caller(headers).name == "ada"
    assert told == [("security.keys", False)]
    assert guard.stale() == {("security.keys",): 1.0}
    assert "what was read before stays in force" in caplog.text
    path.unlink()
    guard.look()
    assert guard.access.caller(headers).name == "ada"

    other = new_key()
    keys_file(path, entry(other, "bob", models=["m"]))
    assert guard.look()
    assert guard.access.caller({"x-api-key": other}).name == "bob"
    with pytest.raises(Unauthenticated):
        guard.access.caller(headers)
    assert guard.stale() == {("security.keys",): 0.0}


def test_a_process_that_finds_a_broken_file_is_not_ready(tmp_path: Path):
    path = tmp_path / "keys.yaml"
    path.write_text("keys: [")
    guard = Guard(Security(keys=str(path)))
    guard.look()
    assert not guard.ready
    assert guard.access is not None
    with pytest.raises(Unauthenticated):
        guard.access.caller({"x-api-key": KEY})
    touch(path, line(models=["m"]))
    guard.look()
    assert guard.ready


def test_a_link_that_is_swapped_is_a_change(tmp_path: Path):
    """As an orchestrator mounts its secrets."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text(name)
    link = tmp_path / "data"
    link.symlink_to("one")
    watched = Watched("f", [str(link / "f")], (link / "f").read_text)
    assert watched.open() == "one"
    (tmp_path / "next").symlink_to("two")
    os.rename(tmp_path / "next", link)
    assert watched.look()
    assert watched.value == "two"


def test_a_surprise_while_reading_is_no_end(tmp_path: Path, caplog):
    path = tmp_path / "f"
    path.write_text("1")
    watched = Watched("f", [str(path)], lambda: int(path.read_text()))
    watched.open()
    touch(path, "x")
    assert not watched.look()
    assert (watched.value, watched.stale) == (1, True)


# ---- tokens


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


SETTINGS = Jwt(jwks="", issuer=ISSUER, audience=("octoserve",), algorithms=("RS256", "ES256", "EdDSA"), skew=30.0)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("RS256", "ES256", "EdDSA")


def verifier(authority: Authority, clock: Clock | None = None, missed: Any = lambda: None, **changed: Any):
    return TokenVerifier(replace(SETTINGS, **changed), public_keys(authority.jwks(), "here"), missed, clock or Clock())


def who(checks: TokenVerifier, token: str) -> Caller:
    return checks.caller(token, digest_of(token))


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_token_names_its_holder_and_models(authority, algorithm):
    clock = Clock()
    token = authority.token(algorithm, clock.now, sub="ada", models=["fraud", "risk-*"])
    checks = verifier(authority, clock)
    caller = who(checks, token)
    assert (caller.name, caller.may, caller.until) == ("ada", {"infer"}, clock.now + 60 + 30)
    assert caller.sees("fraud")
    assert caller.sees("risk-a")
    assert not caller.sees("other")
    assert who(checks, token) is caller


def test_a_token_ends_although_it_is_remembered(authority):
    clock = Clock()
    checks = verifier(authority, clock)
    token = authority.token("ES256", clock.now)
    who(checks, token)
    clock.now += 89
    who(checks, token)
    clock.now += 1
    for _ in range(2):
        with pytest.raises(Unauthenticated, match="has expired"):
            who(checks, token)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"exp": Clock.now - 31}, "has expired"),
        ({"nbf": Clock.now + 31}, "not valid yet"),
        ({"exp": None}, "lacks the claim exp"),
        ({"exp": "soon"}, "no number|malformed"),
        ({"exp": float("nan")}, "has expired|malformed|no number"),
        ({"iss": "https://evil.example"}, "another issuer"),
        ({"iss": None}, "lacks the claim iss"),
        ({"aud": "someone"}, "another audience"),
        ({"aud": None}, "lacks the claim aud"),
    ],
)
def test_a_claim_that_is_wrong(authority, changed, why):
    token = authority.token("ES256", Clock.now, **changed)
    with pytest.raises(Unauthenticated, match=why) as refused:
        who(verifier(authority), token)
    assert refused.value.given
    assert token[:20] not in str(refused.value)


def test_within_the_skew_clocks_may_differ(authority):
    token = authority.token("ES256", Clock.now, exp=Clock.now - 29, nbf=Clock.now + 29)
    assert who(verifier(authority), token).name == "ada"


def test_no_algorithm_and_no_hmac_with_a_public_key(authority):
    for token in authority.forged(Clock.now):
        with pytest.raises(Unauthenticated):
            who(verifier(authority), token)


def test_only_algorithms_of_the_settings(authority):
    token = authority.token("RS256", Clock.now)
    with pytest.raises(Unauthenticated, match="not taken here; ES256"):
        who(verifier(authority, algorithms=("ES256",)), token)


def test_a_key_of_another_type_than_the_algorithm(authority):
    token = authority.token("ES256", Clock.now, header={"kid": "RS256"})
    with pytest.raises(Unauthenticated, match="not its key's"):
        who(verifier(authority), token)


def test_a_signature_that_was_changed(authority):
    head, body, signature = authority.token("RS256", Clock.now).split(".")
    for token in (f"{head}.{body}.{signature[:-8]}AAAAAAAA", f"{head}.{body}x.{signature}", "..", "a.b.c", "é.é.é"):
        with pytest.raises(Unauthenticated, match=r"malformed|signature|algorithm"):
            who(verifier(authority), token)


def test_a_key_that_is_not_listed_is_asked_for(authority):
    missed: list[int] = []
    checks = verifier(authority, missed=lambda: missed.append(1))
    with pytest.raises(Unauthenticated, match="does not list"):
        who(checks, authority.token("ES256", Clock.now, header={"kid": "new"}))
    assert missed == [1]


def test_but_not_often():
    clock = Clock()
    asked: list[float] = []
    rarely = Rarely(lambda: asked.append(clock.now), clock)
    for _ in range(5):
        rarely()
    clock.now += MISSED_SECONDS
    rarely()
    assert asked == [clock.now - MISSED_SECONDS, clock.now]


@pytest.mark.parametrize(
    ("claims", "changed", "seen"),
    [
        ({"models": "a b"}, {}, ["a", "b"]),
        ({"models": 3}, {}, []),
        ({}, {}, []),
        ({"models": ["a", 3, None]}, {}, ["a"]),
        ({"groups": ["red"]}, {"models_claim": "groups", "mapping": {"red": ("a",), "blue": ("b",)}}, ["a"]),
        ({"groups": ["b"]}, {"models_claim": "groups", "mapping": {"red": ("a",)}}, []),
    ],
)
def test_models_by_claim_or_mapping(authority, claims, changed, seen):
    caller = who(verifier(authority, **changed), authority.token("ES256", Clock.now, **{"models": None, **claims}))
    assert [model for model in "abc" if caller.sees(model)] == seen


def test_as_many_tokens_as_come_are_remembered_up_to_a_bound(authority, monkeypatch):
    monkeypatch.setattr("octoserve.security.tokens._REMEMBERED", 4)
    checks = verifier(authority)
    for number in range(9):
        who(checks, authority.token("EdDSA", Clock.now, sub=str(number)))
    assert len(checks._known) <= 4


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b'{"keys": []}', b'{"keys": [3]}', b'{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}',
     b'{"keys": [{"kty": "RSA", "n": "x"}]}', b'{"keys": [{"kty": "EC", "crv": "secp256k1"}]}'],
)  # fmt: skip
def test_no_keys_are_no_answer(content):
    with pytest.raises(SettingsError, match=r"security\.jwt\.jwks: here"):
        public_keys(content, "here")


def test_a_key_for_something_else_is_passed_over(authority):
    listed = json.loads(authority.jwks())
    for one in listed["keys"]:
        if one["kid"] == "RS256":
            one["use"] = "enc"
        if one["kid"] == "ES256":
            one["alg"] = "RS256"
    assert set(public_keys(json.dumps(listed).encode(), "here")) == {"EdDSA"}


def test_until_the_provider_has_answered_once_tokens_are_told_to_come_back(tmp_path: Path, authority):
    jwks = tmp_path / "jwks.json"
    guard = Guard(Security(jwt=replace(SETTINGS, jwks=str(jwks))))
    guard.open()
    guard.look()
    assert guard.ready
    assert guard.access is not None
    headers = {"authorization": f"Bearer {authority.token('ES256', time.time())}"}
    with pytest.raises(Unavailable):
        guard.access.caller(headers)
    jwks.write_bytes(authority.jwks())
    guard.look()
    assert guard.access.caller(headers).name == "ada"


@given(st.text(max_size=60))
def test_whatever_comes_is_a_caller_or_an_error_of_ours(text):
    try:
        Access(dict, lambda: _CHECKS).caller({"authorization": f"Bearer {text}"})
    except OctoserveError:
        pass


_CHECKS = verifier(Authority("ES256"))


# ---- heads


def head_of(key: str = "") -> Head:
    said = f"x-api-key: {key}\r\n" if key else ""
    return parse_head(f"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\n{said}\r\n".encode())


def allowed(caller: Caller, right: str = INFER) -> Head:
    head = head_of(KEY)
    head.access = Access(lambda: {digest_of(KEY): caller})
    allow(head, right, "m")
    return head


def test_a_head_with_a_key_is_kept_and_names_its_caller():
    head = allowed(Caller("ada", ["m"]))
    assert (head.once, InferHead("m", "", head).caller) == (False, "ada")
    assert seen_by(head)("m")
    assert not seen_by(head)("other")


def test_a_head_with_a_token_and_one_that_is_refused_are_not():
    assert allowed(Caller("ada", ["m"], until=time.time() + 60)).once
    for key, right in (("", INFER), (new_key(), INFER), (KEY, MANAGE)):
        head = head_of(key)
        head.access = Access(lambda: {digest_of(KEY): Caller("ada", ["m"])})
        with pytest.raises((Unauthenticated, Forbidden)):
            allow(head, right, "m")
        assert head.once


def test_without_security_a_head_is_as_before():
    head = head_of()
    allow(head, INFER, "m")
    assert (head.once, head.caller, InferHead("m", "", head).caller) == (False, None, "")
    assert seen_by(head)("anything")


def test_a_route_that_forgot_to_ask_is_shut(monkeypatch):
    service: Any = SimpleNamespace(dataplane=SimpleNamespace(tracer=None))
    limits: Any = SimpleNamespace(max_body=1)
    for access in (Access(dict), None):
        door = HttpDoor(service, limits, Registry().counter("c", "", ("door", "reason")), access=access)
        monkeypatch.setattr(door, "_find", lambda head: ("its handler", "its binding"))
        head = head_of(KEY)
        door.route(head)
        assert (head.binding == "its binding") == (access is None)
        assert isinstance(head.binding, Forbidden) == (access is not None)


@pytest.mark.parametrize(
    ("method", "path", "may", "lets"),
    [
        ("GET", "/models", INFER, True),
        ("GET", "/models/m", INFER, True),
        ("DELETE", "/models/m", INFER, False),
        ("DELETE", "/models/m", MANAGE, True),
        ("DELETE", "/models/other", MANAGE, False),
    ],
)
def test_routes_of_a_multi_model_container_say_who_may(method: str, path: str, may: str, lets: bool) -> None:
    head = parse_head(f"{method} {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n\r\n".encode())
    caller = Caller("a", models=("m",), may=(may,))
    head.access = Access(lambda: {digest_of(KEY): caller})
    nothing: Any = None
    with contextlib.nullcontext() if lets else pytest.raises(Forbidden):
        SagemakerDoor(nothing, nothing).find(head, path.strip("/").split("/"))
    assert head.allowed


def test_who_puts_a_model_into_a_multi_model_container_may_manage_it() -> None:
    nothing: Any = None
    load = SagemakerDoor(nothing, nothing)._load(b'{"model_name": "m", "url": "u"}', Caller("a", models=("m",)))
    with pytest.raises(Forbidden, match="may not manage model 'm'"):
        asyncio.run(load)
