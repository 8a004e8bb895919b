"""Certificates by openssl, keys' files, and an identity provider: what security is tested with."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import os
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from octoserve.security.keys import digest_of
from support.service import Served

ISSUER = "https://login.example.com/"
_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def entry(key: str, name: str, **more: Any) -> dict[str, Any]:
    """A key in the keys' file."""
    return {"name": name, "sha256": digest_of(key).hex(), **more}


def keys_file(path: Path, *entries: dict[str, Any]) -> Path:
    """Written as a whole, by rename."""
    return touch(path, json.dumps({"keys": entries}))


def touch(path: Path, text: str) -> Path:
    """New content, in another file of this name: a change that nobody can overlook."""
    ahead = path.with_name(path.name + ".new")
    ahead.write_text(text)
    os.replace(ahead, path)
    return path


class Ca:
    """An authority of our own, in a folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name = folder, name
        self.certificate = folder / f"{name}.crt"
        self._key = folder / f"{name}.key"
        self._openssl(
            "req", "-x509", *_CURVE, "-days", "30", "-subj", f"/CN={name}", "-keyout", self._key,
            "-out", self.certificate, "-addext", "basicConstraints=critical,CA:true",
        )  # fmt: skip

    def issue(self, name: str, serial: int = 1) -> tuple[Path, Path]:
        """A certificate and its key, for this machine's names. Both are replaced whole."""
        key, request, certificate = (self.folder / f"{name}.{kind}.new" for kind in ("key", "csr", "crt"))
        extensions = self.folder / f"{name}.ext"
        extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        self._openssl("req", *_CURVE, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        self._openssl(
            "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-days", "30",
            "-set_serial", str(serial), "-extfile", extensions, "-out", certificate,
        )  # fmt: skip
        made = (self.folder / f"{name}.crt", self.folder / f"{name}.key")
        os.replace(key, made[1])
        os.replace(certificate, made[0])
        return made

    @staticmethod
    def _openssl(*words: object) -> None:
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Authority:
    """An identity provider: private keys, tokens, and what it publishes. A key's `kid` is its algorithm or named."""

    def __init__(self, *algorithms: str) -> None:
        self._keys: dict[str, tuple[str, Any]] = {}
        for algorithm in algorithms:
            self.add(algorithm)

    def add(self, algorithm: str, kid: str = "") -> None:
        """A new key."""
        made: Any
        if algorithm.startswith("RS"):
            made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        elif algorithm.startswith("ES"):
            made = ec.generate_private_key(ec.SECP256R1())
        else:
            made = ed25519.Ed25519PrivateKey.generate()
        self._keys[kid or algorithm] = (algorithm, made)

    def remove(self, kid: str) -> None:
        """It is listed no more."""
        del self._keys[kid]

    def jwks(self) -> bytes:
        """What it publishes."""
        return json.dumps({"keys": [self._public(kid) for kid in self._keys]}).encode()

    def _public(self, kid: str) -> dict[str, Any]:
        algorithm, key = self._keys[kid]
        known = jwt.get_algorithm_by_name(algorithm)
        return {**json.loads(known.to_jwk(key.public_key())), "kid": kid, "use": "sig"}

    def token(self, kid: str, now: float, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """Good for a minute; a claim that is None is left out."""
        algorithm, key = self._keys[kid]
        said = {"iss": ISSUER, "aud": "octoserve", "sub": "ada", "exp": now + 60, "models": ["m"], **claims}
        said = {name: value for name, value in said.items() if value is not None}
        # By the part below `encode`, which would not sign claims that are wrong.
        return jwt.api_jws.encode(json.dumps(said).encode(), key, algorithm, {"kid": kid, **(header or {})})

    def forged(self, now: float) -> list[str]:
        """Tokens without a signature, and signed by HMAC with what everybody knows."""
        claims = json.dumps({"iss": ISSUER, "aud": "octoserve", "sub": "eve", "exp": now + 60, "models": ["*"]})
        made = []
        for kid in self._keys:
            for name in ("none", "None", ""):
                head = _b64(json.dumps({"alg": name, "kid": kid}).encode())
                made.append(f"{head}.{_b64(claims.encode())}.")
            head = _b64(json.dumps({"alg": "HS256", "kid": kid, "typ": "JWT"}).encode())
            for secret in (json.dumps(self._public(kid)).encode(), self._pem(kid)):
                signed = hmac.digest(secret, f"{head}.{_b64(claims.encode())}".encode(), hashlib.sha256)
                made.append(f"{head}.{_b64(claims.encode())}.{_b64(signed)}")
        return made

    def _pem(self, kid: str) -> bytes:
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        pem: bytes = self._keys[kid][1].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return pem


class Provider:
    """The identity provider's address: HTTPS, with a certificate of `ca`."""

    def __init__(self, ca: Ca, authority: Authority) -> None:
        self.content = authority.jwks()
        self.status = 200
        self.asked = 0
        provider = self

        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked += 1
                self.send_response(provider.status)
                self.send_header("Content-Length", str(len(provider.content)))
                self.end_headers()
                self.wfile.write(provider.content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*ca.issue("provider"))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://localhost:{self._server.server_address[1]}/jwks.json"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Nobody listens any more."""
        self._server.shutdown()
        self._server.server_close()


class Secured(Served):
    """A service with TLS, asked with a key and an admin token."""

    tls: ssl.SSLContext
    host = "localhost"
    key = ""
    token = ""

    def connect(self, timeout: float = 30.0) -> http.client.HTTPConnection:
        """A new connection to the REST door."""
        return http.client.HTTPSConnection(self.host, self.ports["http"], timeout=timeout, context=self.tls)

    def admin(self, method: str, path: str, body: object = None, headers: dict | None = None):
        """With the token, unless headers bring another one."""
        connection = http.client.HTTPSConnection("localhost", self.ports["admin"], timeout=60, context=self.tls)
        with contextlib.closing(connection):
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"authorization": f"Bearer {self.token}", **(headers or {})})
            answer = connection.getresponse()
            content = answer.read()
            kind = answer.getheader("content-type") or ""
            return answer.status, json.loads(content) if "json" in kind else content.decode()

    def infer(self, model: str, connection: http.client.HTTPConnection | None = None, key: str = ""):
        """Status, and the number that the version answers with."""
        mine = connection or self.connect()
        body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]})
        try:
            mine.request("POST", f"/v2/models/{model}/infer", body, {"authorization": f"Bearer {key or self.key}"})
            answer = mine.getresponse()
            content = answer.read()
        finally:
            if connection is None:
                mine.close()
        return answer.status, json.loads(content)["outputs"][0]["data"][0] if answer.status == 200 else None


@contextlib.contextmanager
def secured(
    folder: Path, repository: Path, spec: str, tls: ssl.SSLContext, key: str, token: str, program: str, workers: int = 2
) -> Iterator[Secured]:
    """A service of this spec for a block, and its end."""
    (folder / "octoserve.yaml").write_text(spec)
    run = folder / "run"
    run.mkdir()
    flags = ("--spec", str(folder / "octoserve.yaml"))
    service = Secured(repository, run / "state", *flags, workers=workers, wait=False, program=program)
    service.tls, service.key, service.token = tls, key, token
    try:
        service.wait_ready(60)
        yield service
        service.finish()
    except BaseException:
        service.show()
        raise
    finally:
        service.clean()
