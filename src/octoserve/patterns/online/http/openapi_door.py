"""`/openapi.json`, one document for all doors, and `/docs`, a page to try requests from."""

from __future__ import annotations

from collections.abc import Callable, Collection
from importlib.resources import files

import msgspec

from octoserve.core.errors import NotFound
from octoserve.core.signature import Signature
from octoserve.patterns.online.http.connection import Connection
from octoserve.patterns.online.http.head import Head
from octoserve.patterns.online.http.openapi import document, with_keys
from octoserve.patterns.online.http.routes import Route, allow, get, method, open_to_all, seen_by
from octoserve.patterns.online.service import Service

_PAGE_HEADERS = (
    "content-type: text/html; charset=utf-8\r\n"
    "content-security-policy: default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; frame-ancestors 'none'\r\n"
    "x-content-type-options: nosniff"
)


class OpenApiDoor:
    """See the module."""

    def __init__(self, service: Service, doors: Collection[str]) -> None:
        self._service = service
        self._doors = doors

    def find(self, head: Head, parts: list[str]) -> Route:
        """See `Family`."""
        match parts:
            case ["openapi.json"]:
                allow(head)
                sees = seen_by(head)
                keys = head.access is not None
                return get(head, lambda _: self._document(sees, keys))
            case ["docs"]:
                open_to_all(head)  # the page holds nothing; what it shows, it asks for
                return method(head, "GET"), self._page
        raise NotFound(f"no such path: {head.path}")

    def _document(self, sees: Callable[[str], bool], keys: bool) -> bytes:
        models = [model for model in self._service.models() if sees(model)]
        made = document(self._doors, models, self._signature)
        return msgspec.json.encode(with_keys(made) if keys else made)

    def _signature(self, model: str) -> Signature:
        return self._service.dataplane.bind(model).handle.signature

    def _page(self, connection: Connection, _: bytes) -> None:
        page = files("octoserve.patterns.online.http").joinpath("openapi.html").read_bytes()
        connection.respond(200, page, _PAGE_HEADERS)
