"""`/models`: SageMaker loads and unloads the models of a multi-model container.

Source: SageMaker's "Custom Containers Contract for Multi-Model Endpoints". Its fifth call, `/models/{m}/invoke`, is the
MLflow door's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs

import msgspec

from octoserve.core.errors import InvalidInput, NotFound, OctoserveError
from octoserve.patterns.online.http.connection import Connection
from octoserve.patterns.online.http.head import Head
from octoserve.patterns.online.http.routes import Later, Route, allow, method, respond_to, seen_by
from octoserve.patterns.online.sagemaker_models import NoRoom, SagemakerModels
from octoserve.patterns.online.service import Service
from octoserve.security.caller import MANAGE, SEE, Caller

_PAGE = 100
_INSUFFICIENT_STORAGE = 507
_LOOKS, _LOOK_SECONDS = 100, 0.05
"""For the repository's next scan, which is said to all workers at once."""
_encode = msgspec.json.encode


class _Load(msgspec.Struct):
    model_name: str
    url: str


class SagemakerDoor:
    """See the module."""

    def __init__(self, service: Service, models: SagemakerModels) -> None:
        self._service = service
        self._models = models
        self._threads = ThreadPoolExecutor(1, "sagemaker")
        """One: loads and unloads of a worker do not overtake each other on disk."""
        self._later = Later(_refuse)

    def find(self, head: Head, parts: list[str]) -> Route:
        """See `Family`."""
        match parts:
            case ["models"] if head.method == "POST":
                allow(head)
                caller = head.caller
                return method(head, "POST"), lambda c, body: self._later.answer(c, self._load(body, caller))
            case ["models"]:
                allow(head)
                sees, after = seen_by(head), parse_qs(head.query).get("next_page_token", [""])[0]
                return method(head, "GET", "POST"), lambda c, _: self._later.answer(c, self._list(after, sees))
            case ["models", model] if head.method == "DELETE":
                allow(head, MANAGE, model)
                who = head.caller.name if head.caller is not None else ""
                return method(head, "DELETE"), lambda c, _: self._later.answer(c, self._unload(model, who))
            case ["models", model]:
                allow(head, SEE, model)
                return method(head, "GET", "DELETE"), lambda c, _: self._later.answer(c, self._one(model))
        raise NotFound(f"no such path: {head.path}")

    async def _load(self, body: bytes, caller: Caller | None) -> bytes:
        try:
            asked = msgspec.json.decode(body, type=_Load)
        except msgspec.DecodeError as error:
            raise InvalidInput(f'{{"model_name": ..., "url": ...}} is wanted: {error}') from None
        if caller is not None:
            caller.check(MANAGE, asked.model_name)
        await self._in_thread(self._models.place, asked.model_name, asked.url)
        try:
            await self._service.change("load", asked.model_name, "" if caller is None else caller.name)
        except BaseException:
            await self._in_thread(self._models.remove, asked.model_name)
            raise
        return b""

    async def _unload(self, model: str, who: str) -> bytes:
        await self._in_thread(self._models.url_of, model)
        await self._service.change("unload", model, who)
        await self._in_thread(self._models.remove, model)
        for _ in range(_LOOKS):  # until then it is a model that is not ready, and no model that is not there
            if model not in self._service.models():
                break
            await asyncio.sleep(_LOOK_SECONDS)
        return b""

    async def _one(self, model: str) -> bytes:
        url = await self._in_thread(self._models.url_of, model)
        if not self._service.model_ready(model):
            raise NotFound(f"model {model!r} is not loaded")
        return _encode(_said(model, url))

    async def _list(self, after: str, sees: Callable[[str], bool]) -> bytes:
        ready, urls = self._ready(), await self._in_thread(self._models.all)
        loaded = [model for model in urls if model in ready and sees(model)]
        page = [model for model in loaded if model > after][:_PAGE]
        said: dict[str, Any] = {"models": [_said(model, urls[model]) for model in page]}
        if page and page[-1] != loaded[-1]:
            said["nextPageToken"] = page[-1]
        return _encode(said)

    def _ready(self) -> set[str]:
        return {entry.model for entry in self._service.index(only_ready=True)}

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)


def _said(model: str, url: str) -> dict[str, str]:
    return {"modelName": model, "modelUrl": url}


def _refuse(connection: Connection, error: OctoserveError) -> None:
    if isinstance(error, NoRoom):
        connection.respond_error(_INSUFFICIENT_STORAGE, str(error))
    else:
        respond_to(connection, error)
