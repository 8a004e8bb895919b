"""The supervisor's part in security, the settings' section, and the command that makes keys."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import yaml

from octoserve import spec
from octoserve.cli.main import run
from octoserve.core.errors import SettingsError, Unavailable
from octoserve.patterns.online.supervisor import security_watch
from octoserve.patterns.online.supervisor.security_watch import SecurityWatch
from octoserve.security.caller import ADMIN
from octoserve.security.keys import digest_of, new_key, read_keys
from support.security import ISSUER, Authority, Ca, entry, keys_file

JWT = {"issuer": ISSUER, "audience": "octoserve"}


def settings(tmp_path: Path, **security: object) -> spec.ServeSettings:
    values = {"repository": str(tmp_path), "state_dir": str(tmp_path / "state"), "security": security}
    return spec.check(values, {})


def watch(tmp_path: Path, fetch=None, **security: object) -> SecurityWatch:
    return SecurityWatch(settings(tmp_path, **security), tmp_path / "inside", fetch)


def test_paths_are_from_the_files_folder(tmp_path: Path) -> None:
    (tmp_path / "octoserve.yaml").write_text(
        "repository: models\nsecurity:\n  tls: {certificate: a.crt, key: a.key, client_ca: ca.crt}\n  keys: keys.yaml\n"
        "  jwt: {jwks: jwks.json, issuer: i, audience: [a, b], ca: ca.crt}\n"
    )
    section = spec.load({}, {}, tmp_path / "octoserve.yaml").security
    assert section.tls is not None
    assert section.jwt is not None
    found = (
        section.tls.certificate,
        section.tls.key,
        section.tls.client_ca,
        section.keys,
        section.jwt.jwks,
        section.jwt.ca,
    )
    assert {Path(path).parent for path in found} == {tmp_path}
    assert section.jwt.audience == ["a", "b"]


@pytest.mark.parametrize(
    ("security", "wanted"),
    [
        ({"tls": {"certificate": "a"}}, "security.tls.key"),
        ({"jwt": {"jwks": "http://login.example.com/k", **JWT}}, "https:// address wanted"),
        ({"jwt": {"jwks": "https://a:b@login.example.com/k", **JWT}}, "without a name and password"),
        ({"jwt": {"jwks": "k", **JWT, "algorithms": ["HS256"]}}, "security.jwt.algorithms.0"),
        ({"jwt": {"jwks": "k", **JWT, "algorithms": ["none"]}}, "security.jwt.algorithms.0"),
        ({"jwt": {"jwks": "k", **JWT, "algorithms": []}}, "security.jwt.algorithms"),
        ({"jwt": {"jwks": "k", "issuer": "i", "audience": []}}, "security.jwt.audience"),
        ({"key": "k"}, "did you mean 'keys'?"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, security, wanted) -> None:
    with pytest.raises(SettingsError) as refused:
        settings(tmp_path, **security)
    assert wanted in str(refused.value)


def test_a_start_says_what_cannot_be_read(tmp_path: Path) -> None:
    ca = Ca(tmp_path / "tls")
    certificate, key = ca.issue("a")
    _, other = ca.issue("b")
    junk = tmp_path / "junk"
    junk.write_text("junk")
    for tls, why in (
        ({"certificate": junk, "key": key}, "they are not pem"),
        ({"certificate": certificate, "key": tmp_path / "none"}, "security.tls.key: cannot read"),
        ({"certificate": certificate, "key": other}, "the key is not the certificate's"),
        ({"certificate": certificate, "key": key, "client_ca": junk}, "security.tls.client_ca"),
    ):
        with pytest.raises(SettingsError) as refused:
            watch(tmp_path, tls={name: str(path) for name, path in tls.items()}).open()
        assert why in str(refused.value).lower()
    with pytest.raises(SettingsError, match="cannot read"):
        watch(tmp_path, keys=str(tmp_path / "none.yaml")).open()
    with pytest.raises(SettingsError, match="is not there"):
        watch(tmp_path, jwt={"jwks": str(tmp_path / "none.json"), **JWT})
    with pytest.raises(SettingsError, match="no JWKS"):
        watch(tmp_path, jwt={"jwks": str(junk), **JWT}).open()


def test_a_key_with_a_password_is_refused_and_not_asked_for(tmp_path: Path) -> None:
    ca = Ca(tmp_path / "tls")
    certificate, key = ca.issue("a")
    ca._openssl("ec", "-in", key, "-aes256", "-passout", "pass:x", "-out", tmp_path / "locked.key")
    with pytest.raises(SettingsError, match="without a password"):
        watch(tmp_path, tls={"certificate": str(certificate), "key": str(tmp_path / "locked.key")}).open()


def test_the_single_token_is_an_admin_beside_the_file(tmp_path: Path) -> None:
    key = new_key()
    path = keys_file(tmp_path / "keys.yaml", entry(key, "ada", role="viewer"))
    values = {"repository": str(tmp_path), "admin_token": "sésame", "security": {"keys": str(path)}}
    made = SecurityWatch(spec.check(values, {}), tmp_path / "inside")
    made.open()
    access = made.guard.access
    assert access is not None
    single = access.caller({"authorization": "Bearer " + "sésame".encode().decode("latin-1")})
    assert (single.name, single.reaches(ADMIN)) == ("admin API", True)
    assert access.caller({"x-api-key": key}).role == "viewer"
    assert made.told.keys == str(path)
    assert "sésame" not in repr(made.told)


def test_a_provider_is_asked_and_what_came_last_stays(tmp_path: Path, caplog, monkeypatch) -> None:
    monkeypatch.setattr(security_watch, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(security_watch, "AGAIN_SECONDS", 0.0)
    authority = Authority("EdDSA")
    answers: list[bytes | Exception] = [Unavailable("away"), authority.jwks(), b"<html>", Unavailable("away")]
    asked: list[tuple[str, str]] = []

    def fetch(url: str, ca: str) -> bytes:
        asked.append((url, ca))
        answer = answers[min(len(asked), len(answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    url = "https://login.example.com/jwks.json"

    async def main() -> None:
        made = watch(tmp_path, fetch, jwt={"jwks": url, **JWT})
        made.open()
        assert made.told.jwt is not None
        await made.prepare()
        assert list(files()) == []
        running = asyncio.create_task(made.run())
        async with asyncio.timeout(30):
            while not list(files()):
                await asyncio.sleep(0.001)
            made.missed()
            while len(asked) < 5:
                await asyncio.sleep(0.001)
        running.cancel()

    def files():
        return (tmp_path / "state").glob("jwks-*")

    asyncio.run(main())
    (file,) = files()
    assert file.read_bytes() == authority.jwks()
    assert file.stat().st_mode & 0o777 == 0o600
    assert {one for one, _ in asked} == {url}
    assert "away; no token is known until they come" in caplog.text
    assert "no JWKS" in caplog.text
    assert caplog.text.count("the keys that are known go on") == 2


# ---- octoserve security key


def test_a_key_is_shown_once_and_its_hash_is_added(tmp_path: Path, capsys) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text("# ours\nkeys:\n  # ada left\n  - {name: ada, sha256: " + "a" * 64 + ", models: [m]}")
    with pytest.raises(SystemExit):
        run(
            [
                "security",
                "key",
                "--name",
                "b",
                "--models",
                "fraud, risk-*",
                "--may",
                "infer,manage",
                "--file",
                str(file),
            ]
        )
    made = capsys.readouterr().out.strip()
    assert made.startswith("octo_")
    assert len(made) == 48
    ring = read_keys(file)
    caller = ring[digest_of(made)]
    assert (caller.name, caller.may, caller.sees("risk-a"), len(ring)) == ("b", {"infer", "manage"}, True, 2)
    assert "# ada left" in file.read_text()
    assert made not in file.read_text()


def test_without_a_file_the_line_is_shown(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        run(["security", "key", "--name", "alice", "--role", "operator"])
    told = capsys.readouterr()
    (listed,) = yaml.safe_load(told.err)["keys"]
    assert listed == {"name": "alice", "sha256": digest_of(told.out.strip()).hex(), "role": "operator"}


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--models", "m", "--may", "fly"], "may: some of"),
        (["--role", "king"], "role: one of"),
        ([], "models, or a role, wanted"),
    ],
)
def test_a_key_that_opens_nothing_is_not_made(tmp_path: Path, flags, why) -> None:
    file = tmp_path / "keys.yaml"
    with pytest.raises(SettingsError, match=why):
        run(["security", "key", "--name", "x", *flags, "--file", str(file)])
    assert not file.exists()
