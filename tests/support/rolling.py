"""A service with rollout settings, and what tests ask of its rollout API."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from support.service import Served, serving
from support.supervised import until


class Rolling:
    """The rollout API of a service, for one endpoint."""

    def __init__(self, service: Served, endpoint: str = "versioned") -> None:
        self.service, self.endpoint = service, endpoint

    def status(self) -> dict[str, Any]:
        code, body = self.service.admin("GET", f"/api/rollouts/{self.endpoint}")
        assert code == 200, body
        return body

    def rollout(self) -> dict[str, Any]:
        return self.status()["rollout"] or {}

    def start(self, candidate: int, **more: Any) -> tuple[int, Any]:
        return self.service.admin("POST", f"/api/rollouts/{self.endpoint}", {"candidate": candidate, **more})

    def command(self, name: str, **more: Any) -> tuple[int, Any]:
        return self.service.admin("POST", f"/api/rollouts/{self.endpoint}/{name}", more)

    def until_phase(self, *phases: str, timeout: float = 30.0) -> dict[str, Any]:
        until(lambda: self.rollout().get("phase") in phases, timeout, f"{phases}: {self.rollout()}")
        return self.rollout()

    def until_result(self, timeout: float = 60.0) -> dict[str, Any]:
        return self.until_phase("ended", timeout=timeout)

    def audit(self) -> list[dict[str, Any]]:
        """All entries, by pages smaller than anybody's."""
        entries: list[dict[str, Any]] = []
        while True:
            after = entries[-1]["seq"] if entries else 0
            code, page = self.service.admin("GET", f"/api/rollouts/{self.endpoint}/audit?after={after}&limit=20")
            assert code == 200, page
            entries += page
            if len(page) < 20:
                return entries

    def shares(self) -> dict[tuple[int, str], float]:
        return {(r["version"], r["role"]): r["share"] for r in self.status()["routes"]}


@contextlib.contextmanager
def rolling(
    repository: Path, folder: Path, section: dict[str, Any], endpoint: str = "versioned", **more: Any
) -> Iterator[Rolling]:
    """A service whose spec has this `rollout:` section."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = folder / "octoserve.yaml"
    spec.write_text(yaml.safe_dump({"rollout": section}))
    with serving(repository, folder, "--spec", str(spec), **more) as service:
        yield Rolling(service, endpoint)


def golden(x: list[list[float]], version: int) -> str:
    """golden.json of `versioned_model(version)`: one sample."""

    def tensor(name: str, rows: list[list[float]]) -> dict[str, Any]:
        return {"name": name, "datatype": "FP32", "shape": [len(rows), 2], "data": rows}

    plus = [[v + version for v in row] for row in x]
    return json.dumps([{"inputs": [tensor("x", x)], "outputs": [tensor("plus", plus)]}])
