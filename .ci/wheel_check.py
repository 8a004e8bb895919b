"""Serve with nothing but the installed wheel: start, ask once over HTTP, stop, all with the standard library."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path


def main(repository: str) -> None:
    """Exit non-zero unless the installed `octoserve` answers and leaves cleanly."""
    with tempfile.TemporaryDirectory() as folder:
        ports_file = Path(folder, "ports.json")
        command = [str(Path(sys.executable).with_name("octoserve")), "serve", "--repository", repository]
        command += ["--model", "fraud", "--workers", "1", "--http-port", "0", "--grpc-port", "0", "--admin-port", "0"]
        command += ["--state-dir", folder, "--ports-file", str(ports_file)]
        service = subprocess.Popen(command)
        try:
            answer = ask(wait_for(ports_file, service))
            print(answer)
            assert answer["outputs"][0]["data"] in ([0], [1]), answer
            service.send_signal(signal.SIGTERM)
            assert service.wait(30) == 0, service.returncode
        finally:
            service.kill()


def wait_for(ports_file: Path, service: subprocess.Popen[bytes]) -> int:
    """The HTTP port, once the service is ready."""
    end = time.monotonic() + 30
    while not ports_file.exists():
        assert service.poll() is None, f"octoserve serve ended with {service.returncode}"
        assert time.monotonic() < end, "octoserve serve was not ready within 30 s"
        time.sleep(0.05)
    return int(json.loads(ports_file.read_text())["http"])


def ask(port: int) -> dict[str, list[dict[str, list[int]]]]:
    """One prediction."""
    body = {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 30], "data": [0.5] * 30}]}
    url = f"http://127.0.0.1:{port}/v2/models/fraud/infer"
    with urllib.request.urlopen(url, data=json.dumps(body).encode(), timeout=10) as response:
        answer: dict[str, list[dict[str, list[int]]]] = json.load(response)
    return answer


if __name__ == "__main__":
    main(sys.argv[1])
