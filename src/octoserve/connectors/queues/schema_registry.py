"""A schema registry, asked over HTTP: what a schema's number stands for, and a number for a schema.

Paths and answers are those of Confluent's Schema Registry, which Apicurio Registry (below /apis/ccompat/v7), Karapace
and Redpanda answer too: https://docs.confluent.io/platform/current/schema-registry/develop/api.html
"""

from __future__ import annotations

import base64
import http.client
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import msgspec

from octoserve.core.errors import InvalidInput, NotFound, SettingsError, Unavailable

AUTH = "OCTOSERVE_SCHEMA_REGISTRY_AUTH"
"""Environment variable: `user:password`, where they are not in the address."""
AVRO, PROTOBUF = "AVRO", "PROTOBUF"
_TIMEOUT = 5.0
_MOST_BYTES = 4 << 20
_MOST_REFERENCES = 100
_UNKNOWN = (40401, 40402, 40403)
"""Error codes: no such subject, version, schema."""
_TYPE = "application/vnd.schemaregistry.v1+json"


class Schema(msgspec.Struct, frozen=True, kw_only=True):
    """A schema as it was registered. references: name -> text of each that it rests on, the deepest first."""

    kind: str
    text: str
    references: dict[str, str] = {}


class _Reference(msgspec.Struct, frozen=True):
    name: str
    subject: str
    version: int


class _Told(msgspec.Struct, frozen=True, rename={"text": "schema", "kind": "schemaType"}):
    text: str
    kind: str | None = None
    references: list[_Reference] | None = None


class SchemaRegistry:
    """Every call opens a connection of its own and blocks, some seconds at most."""

    def __init__(self, url: str, environ: Mapping[str, str]) -> None:
        """url: `http[s]://[user:password@]host[:port][/prefix]`. Raises SettingsError, which does not repeat it."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            parts, host, port = urlsplit(""), "", None
        if not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
            raise SettingsError("schema_registry: an address such as http://user:password@host:8081 is wanted")
        self._host, self._port = host, port
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/")
        self.label = f"{parts.scheme}://{host}{f':{port}' if port else ''}{self._prefix}"
        """The address as people may see it."""
        self._headers = {"Accept": f"{_TYPE}, application/json", "Content-Type": _TYPE, "User-Agent": "octoserve"}
        pair = environ.get(AUTH, "")
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        if pair:
            self._headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()

    def schema(self, number: int) -> Schema:
        """Raises NotFound; Unavailable for anything that may pass; SettingsError where we are not let in."""
        told = self._registered(f"/schemas/ids/{number}")
        references: dict[str, str] = {}
        self._gather(told, references, 0)
        return Schema(kind=told.kind or AVRO, text=told.text, references=references)

    def _registered(self, path: str) -> _Told:
        try:
            return msgspec.convert(self._ask("GET", path), _Told)
        except msgspec.ValidationError as error:
            raise Unavailable(f"{self.label}: {path} is answered with no schema: {error}") from None

    def _gather(self, told: _Told, found: dict[str, str], depth: int) -> None:
        for each in told.references or ():
            if each.name in found:
                continue
            if depth > _MOST_REFERENCES or len(found) >= _MOST_REFERENCES:
                raise InvalidInput(f"a schema rests on more than {_MOST_REFERENCES} others")
            below = self._registered(f"/subjects/{quote(each.subject, safe='')}/versions/{each.version}")
            self._gather(below, found, depth + 1)
            found[each.name] = below.text

    def register(self, subject: str, schema: Schema) -> int:
        """The schema's number under this subject, which is its own already if it was registered before.

        Raises InvalidInput for one that the registry refuses, Unavailable, SettingsError.
        """
        body = {"schema": schema.text, "schemaType": schema.kind}
        told = self._ask("POST", f"/subjects/{quote(subject, safe='')}/versions", body)
        number = told.get("id")
        if not isinstance(number, int):
            raise Unavailable(f"{self.label} gave no number for the schema of {subject}")
        return number

    def _ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        if self._tls is not None:
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                self._host, self._port, timeout=_TIMEOUT, context=self._tls
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT)
        try:
            content = None if body is None else msgspec.json.encode(body)
            connection.request(method, self._prefix + path, content, self._headers)
            answer = connection.getresponse()
            status, text = answer.status, answer.read(_MOST_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"{self.label}: {str(error) or type(error).__name__}") from None
        finally:
            connection.close()
        return self._told(status, text, path)

    def _told(self, status: int, text: bytes, path: str) -> dict[str, Any]:
        if status in (401, 403):
            raise SettingsError(
                f"schema_registry: {self.label} answered {status}: it wants another user or password, in the address "
                f"or as user:password in {AUTH}"
            )
        try:
            told = msgspec.json.decode(text, type=dict[str, Any])
        except msgspec.MsgspecError:
            told = {}
        if status == 200:
            return told
        code, why = told.get("error_code"), str(told.get("message") or "")[:300]
        if status == 404 and code in _UNKNOWN:
            raise NotFound(f"{self.label} knows no {path}")
        if status in (400, 409, 422) and code is not None:
            raise InvalidInput(f"{self.label}: {why or status}")
        raise Unavailable(f"{self.label} answered {status} to {path}{f': {why}' if why else ''}")
