"""Versions of a model that a queue's messages are split over, in memory, and a data plane that has them."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from octoserve.core.signature import Signature, TensorSpec
from octoserve.dataplane.endpoint import DataPlane
from octoserve.lifecycle.lease import Handle
from octoserve.lifecycle.states import VersionRef
from octoserve.routing.plan import RoutePlan, split_arms
from octoserve.telemetry.metrics import Registry

SIGNATURE = Signature([TensorSpec("x", "FP32", (-1,))], [TensorSpec("y", "FP32", (-1,))], batchable=True)


class Twice:
    """A version whose answer tells it: y = x * version. It fails for what is in `poison`."""

    platform, lanes = "test", 0

    def __init__(self, version: int) -> None:
        self.version = version
        self.signature = SIGNATURE
        self.poison: dict[float, Exception] = {}
        self.runs: list[list[float]] = []

    def run(self, inputs: Any) -> list[Any]:
        self.runs.append(inputs[0].tolist())
        for value in inputs[0].tolist():
            if value in self.poison:
                raise self.poison[value]
        return [inputs[0] * np.float32(self.version)]

    def close(self) -> None:
        pass


def plane_of(plan: RoutePlan, models: dict[int, Twice]) -> DataPlane:
    plane = DataPlane(Registry(), asyncio.new_event_loop(), ThreadPoolExecutor(1))
    for number, model in models.items():
        plane.publish(Handle(VersionRef("m", number, "", ""), model))  # type: ignore[arg-type]
    plane.route([plan], {}, [("m", number) for number in models])
    return plane


def canary(weight: int = 3000, **more: Any) -> RoutePlan:
    return RoutePlan("m", 1, split_arms(1, 2, weight, baseline=True), **{"seed": "r1", "stratum": "r1/0", **more})


def body(i: int, **more: Any) -> bytes:
    return json.dumps({"id": f"m{i}", "x": float(i), **more}).encode()
