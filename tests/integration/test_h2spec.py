"""h2spec (github.com/summerwind/h2spec), all of it, against the gRPC door."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest

from octoserve.patterns.online.grpc.transport import GrpcServer

H2SPEC = shutil.which("h2spec") or shutil.which("h2spec", path=str(Path.home() / "go" / "bin"))


@pytest.mark.skipif(H2SPEC is None, reason="h2spec is neither on PATH nor in ~/go/bin")
def test_h2spec() -> None:
    async def main() -> tuple[int, str]:
        server = GrpcServer({}, {})
        listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            str(H2SPEC), "--strict", "--timeout", "5", "-h", "127.0.0.1", "-p", str(port),
            stdout=subprocess.PIPE,
        )  # fmt: skip
        output, _ = await process.communicate()
        listener.close()
        assert process.returncode is not None
        return process.returncode, output.decode(errors="replace")

    code, output = asyncio.run(main())
    assert code == 0, output[output.find("Failures:") :]
    assert " 0 skipped, 0 failed" in output
