"""Inputs for every example model, as real as the model's data set, and one shared service of them all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.random import Generator

from support.graphs import spinning_model, versioned_model
from support.service import Served, serving
from support.supervised import publish, until
from support.wire import DTYPES, Sent

Maker = Callable[[int, Generator], list[Sent]]


def _features(width: int) -> Maker:
    return lambda rows, random: [Sent("features", "FP32", (random.random((rows, width)) * 20).astype("<f4"))]


def _penguins(rows: int, random: Generator) -> list[Sent]:
    def words(*known: bytes) -> np.ndarray:
        values = np.empty((rows, 1), dtype=object)
        values[:, 0] = [known[i] for i in random.integers(0, len(known), rows)]
        return values

    return [
        Sent("island", "BYTES", words(b"Biscoe", b"Dream", b"Torgersen")),
        Sent("sex", "BYTES", words(b"female", b"male", b"unknown")),
        *(
            Sent(name, "FP32", random.uniform(low, high, (rows, 1)).astype("<f4"))
            for name, low, high in (
                ("bill_length_mm", 30, 60),
                ("bill_depth_mm", 13, 22),
                ("flipper_length_mm", 170, 230),
                ("body_mass_g", 2700, 6300),
            )
        ),
    ]


def _passage_match(rows: int, random: Generator) -> list[Sent]:
    query, passage = random.integers(1, 5, 2)
    return [
        Sent("query", "FP32", random.standard_normal((rows, query, 16)).astype("<f4")),
        Sent("passage", "FP32", random.standard_normal((rows, passage, 16)).astype("<f4")),
        Sent("passage_mask", "BOOL", random.random((rows, passage)) < 0.7),
    ]


def _echo(datatype: str) -> Maker:
    def make(rows: int, random: Generator) -> list[Sent]:
        columns = int(random.integers(1, 5))
        if datatype == "BYTES":
            values = np.empty((rows, columns), dtype=object)
            for place in np.ndindex(values.shape):
                values[place] = "aé\n\0漢"[: random.integers(0, 6)].encode()
            return [Sent("input", "BYTES", values)]
        raw = random.bytes(rows * columns * np.dtype(DTYPES[datatype]).itemsize)
        if datatype == "BOOL":
            raw = bytes(byte & 1 for byte in raw)
        array = np.frombuffer(raw, DTYPES[datatype]).reshape(rows, columns)
        if array.dtype.kind == "f":
            array = np.nan_to_num(array)
        return [Sent("input", datatype, array)]

    return make


INPUTS: dict[str, Maker] = {
    "fraud": _features(30),
    "mlp": _features(256),
    "wine": _features(13),
    "penguins": _penguins,
    "content_type": lambda rows, random: [Sent("bytes", "INT32", random.integers(0, 257, (rows, 2048)).astype("<i4"))],
    "passage_match": _passage_match,
    "fixed": lambda rows, random: [Sent("input", "FP32", random.standard_normal(3).astype("<f4"))],
    **{f"echo_{name.lower()}": _echo(name) for name in (*DTYPES, "BYTES")},
}
"""Model -> inputs of so many rows."""
ECHOES = {name: maker(1, np.random.default_rng(0))[0].datatype for name, maker in INPUTS.items() if "echo_" in name}


@pytest.fixture(scope="session")
def examples(models: Path, build_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Every example model, `versioned` at 1 to 3, `spinning` and `coming_and_going`, all versions, one worker.

    Shared: a test may load and unload `coming_and_going` only, and leaves it loaded.
    """
    assert INPUTS.keys() == build_models.BUILDERS.keys()
    folder = tmp_path_factory.mktemp("examples")
    repository = folder / "models"
    shutil.copytree(models, repository)
    for version in (1, 2, 3):
        publish(repository, "versioned", version, versioned_model(version))
    publish(repository, "spinning", 1, spinning_model())
    publish(repository, "coming_and_going", 1, versioned_model(1))
    with serving(repository, folder / "service", version_policy="all", grace="5s") as service:
        yield service


def idle(service: Served, model: str = "spinning") -> None:
    """Wait until the model has nothing to do: runs whose clients are gone end by themselves."""
    until(lambda: service.total("octoserve_pending_requests", model=model) == 0, 60)
