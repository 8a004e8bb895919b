"""Calls with kserve's inference clients, in a process of their own.

kserve and tritonclient both register the protocol's messages under the same names, so one process can import
only one of them. Everything here runs in the other process, and gives plain values.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Failed(NamedTuple):
    """The class of an exception, its text, and its status where it has one."""

    kind: str
    text: str
    status: object = None


Tensor = tuple[str, str, NDArray[Any]]
"""Name, datatype, elements."""
Answer = dict[str, Any]


def _run(work: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        try:
            return await work()
        except Exception as error:
            status: object = getattr(getattr(error, "response", None), "status_code", None)
            if hasattr(error, "code"):
                status = error.code().name
            return Failed(type(error).__name__, str(error), status)

    return asyncio.run(main())


def _request(model: str, tensors: list[Tensor], binary: bool, outputs: list[str] | None, more: dict[str, Any]) -> Any:
    from kserve import InferInput, InferRequest
    from kserve.protocol.infer_type import RequestedOutput

    inputs = []
    for name, datatype, array in tensors:
        made = InferInput(name, list(array.shape), datatype)
        made.set_data_from_numpy(array, binary_data=binary)
        inputs.append(made)
    if outputs is not None:
        more = {**more, "request_outputs": [RequestedOutput(name) for name in outputs]}
    return InferRequest(model, inputs, **more)


def _answer(response: Any) -> Answer:
    return {
        "id": response.id,
        "model": response.model_name,
        "version": response.model_version,
        "outputs": {output.name: np.asarray(output.as_numpy()) for output in response.outputs},
    }


def rest_infer(
    url: str,
    model: str,
    tensors: list[Tensor],
    binary: bool = True,
    outputs: list[str] | None = None,
    headers: dict[str, str] | None = None,
    **more: Any,
) -> Any:
    """InferenceRESTClient.infer over V2: an Answer, or Failed."""

    async def work() -> Any:
        from kserve import InferenceRESTClient
        from kserve.inference_client import RESTConfig

        async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
            request = _request(model, tensors, binary, outputs, more)
            return _answer(await client.infer(url, request, model_name=model, headers=headers))

    return _run(work)


def v1_infer(url: str, model: str, data: dict[str, Any]) -> Any:
    """InferenceRESTClient.infer over V1: the answer's object, or Failed."""

    async def work() -> Any:
        from kserve import InferenceRESTClient

        async with InferenceRESTClient() as client:  # V1 is its default
            return await client.infer(url, data, model_name=model)

    return _run(work)


def v1_health(url: str, model: str) -> Any:
    """(live, model ready) over V1, or Failed."""

    async def work() -> Any:
        from kserve import InferenceRESTClient

        async with InferenceRESTClient() as client:
            return await client.is_server_live(url), await client.is_model_ready(url, model)

    return _run(work)


def rest_health(url: str, model: str) -> Any:
    """(live, ready, model ready), or Failed."""

    async def work() -> Any:
        from kserve import InferenceRESTClient
        from kserve.inference_client import RESTConfig

        async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
            return (
                await client.is_server_live(url),
                await client.is_server_ready(url),
                await client.is_model_ready(url, model),
            )

    return _run(work)


def grpc_infer(
    url: str,
    model: str,
    tensors: list[Tensor],
    binary: bool = True,
    outputs: list[str] | None = None,
    timeout: float = 60,
    **more: Any,
) -> Any:
    """InferenceGRPCClient.infer: an Answer, or Failed."""

    async def work() -> Any:
        from kserve import InferenceGRPCClient

        async with InferenceGRPCClient(url) as client:
            request = _request(model, tensors, binary, outputs, more)
            return _answer(await client.infer(request, timeout=timeout))

    return _run(work)


def grpc_health(url: str, model: str) -> Any:
    """(live, ready, model ready), or Failed."""

    async def work() -> Any:
        from kserve import InferenceGRPCClient

        async with InferenceGRPCClient(url) as client:
            return (
                await client.is_server_live(),
                await client.is_server_ready(),
                await client.is_model_ready(model),
            )

    return _run(work)


def many_at_once(url: str, model: str, batches: list[list[Tensor]]) -> Any:
    """All requests at the same time on one InferenceGRPCClient; answers in their order."""

    async def work() -> Any:
        from kserve import InferenceGRPCClient

        async with InferenceGRPCClient(url) as client:
            requests = [_request(model, tensors, True, None, {}) for tensors in batches]
            return [_answer(answer) for answer in await asyncio.gather(*map(client.infer, requests))]

    return _run(work)
