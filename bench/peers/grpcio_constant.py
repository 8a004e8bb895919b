"""A bare grpcio handler that returns a constant: what grpcio itself costs, before any inference.

    python grpcio_constant.py sync|aio RESPONSE_FILE PORT

ModelInfer answers with the file's bytes and does not parse the request. `sync` is grpcio's server with two
threads, `aio` its asyncio server. The rows of the comparison use the faster of the two.
"""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

SERVICE = "inference.GRPCInferenceService"


def serve_sync(response: bytes, address: str) -> None:
    def infer(request: bytes, context: grpc.ServicerContext) -> bytes:
        return response

    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    server.add_generic_rpc_handlers([_handler(infer)])
    server.add_insecure_port(address)
    server.start()
    server.wait_for_termination()


async def serve_aio(response: bytes, address: str) -> None:
    async def infer(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return response

    server = grpc.aio.server()
    server.add_generic_rpc_handlers([_handler(infer)])
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


def _handler(infer) -> grpc.GenericRpcHandler:
    # No serializers: the handler gets and gives the message's bytes.
    return grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": grpc.unary_unary_rpc_method_handler(infer)})


if __name__ == "__main__":
    kind, response_file, port = sys.argv[1:]
    constant = Path(response_file).read_bytes()
    if kind == "sync":
        serve_sync(constant, f"127.0.0.1:{port}")
    else:
        asyncio.run(serve_aio(constant, f"127.0.0.1:{port}"))
