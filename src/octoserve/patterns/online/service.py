"""What both doors offer beside predictions: health, metadata, repository, statistics, configuration.

Answers are the Open Inference Protocol's and Triton's REST structures; the gRPC door copies them field by
field into its messages, so that the two cannot drift apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from octoserve import __version__
from octoserve.core.errors import InvalidInput, NotFound, Unavailable, Unsupported
from octoserve.core.signature import TensorSpec
from octoserve.dataplane.batcher import Batcher
from octoserve.dataplane.endpoint import DataPlane
from octoserve.dataplane.statistics import VersionStatistics
from octoserve.patterns.online.link.messages import CatalogEntry

EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "statistics",
)
CONFIG_TYPES = {"BYTES": "TYPE_STRING"}


class Operations(Protocol):
    """The way to the control plane; raises Unavailable while no supervisor is there."""

    async def operate(self, action: str, model: str, who: str = "") -> None:
        """`load` or `unload` a model on every worker, and wait until it is done."""
        ...


class ServerMetadata(msgspec.Struct):
    name: str = "octoserve"
    version: str = __version__
    extensions: Sequence[str] = EXTENSIONS


class ModelMetadata(msgspec.Struct):
    name: str
    versions: list[str]
    platform: str
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]


class Duration(msgspec.Struct):
    count: int
    ns: int


class InferenceStatistics(msgspec.Struct):
    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class BatchStatistics(msgspec.Struct):
    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class ModelStatistics(msgspec.Struct):
    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferenceStatistics
    batch_stats: list[BatchStatistics]
    memory_usage: list[Any] = []


class Service:
    """One worker's answers. `operations` is the way to its supervisor."""

    def __init__(
        self,
        dataplane: DataPlane,
        operations: Operations,
        repository_api: bool = True,
        default_model: str = "",
        max_body: int = 64 << 20,
    ) -> None:
        self.dataplane = dataplane
        self._operations = operations
        self._repository_api = repository_api
        self._default_model = default_model
        self.max_body = max_body
        self.catalog: Sequence[CatalogEntry] = ()
        self.draining = False
        self.routed: Callable[[], bool] = lambda: False
        """Whether the doors have opened over routed models; once true it stays so."""

    def ready(self) -> bool:
        """Whether this worker should get traffic."""
        return not self.draining and self.routed()

    def model_ready(self, model: str, version: str = "") -> bool:
        """Whether a request would find a version. Raises NotFound for an unknown model or version."""
        try:
            self.dataplane.bind(model, version)
        except Unavailable:
            return False
        return True

    def models(self) -> list[str]:
        """Every model of the repository, by name."""
        return sorted({model for model, _ in self.dataplane.known})

    def default_model(self, sees: Callable[[str], bool] = lambda model: True) -> str:
        """The model of a path that names none, of those that who asks may see. Raises NotFound where that is open."""
        if self._default_model:
            return self._default_model
        models = [model for model in self.models() if sees(model)]
        if len(models) != 1:
            raise NotFound(
                f"this path names no model, and {len(models)} are served ({', '.join(models[:10])}); "
                "name one in the path, or set default_model"
            )
        return models[0]

    def model_metadata(self, model: str, version: str = "") -> ModelMetadata:
        """Names, datatypes and shapes of the version that would answer."""
        batcher = self.dataplane.bind(model, version)
        signature = batcher.handle.signature
        if version:
            versions = [str(batcher.handle.ref.version)]
        else:
            versions = [str(v) for v in self.dataplane.ready_versions(model)]
        return ModelMetadata(model, versions, batcher.handle.loaded.platform, signature.inputs, signature.outputs)

    def index(self, only_ready: bool = False) -> list[CatalogEntry]:
        """Every version of the repository with its state."""
        return [entry for entry in self.catalog if not only_ready or entry.state == "READY"]

    def versions(self, model: str, version: str = "") -> list[CatalogEntry]:
        """A model's versions, the newest first, or the one that is named. Raises NotFound for a label without one."""
        number = 0
        if version.isdigit():
            number = int(version)
        elif version:
            number = self.dataplane.bind(model, version).handle.ref.version
        return [entry for entry in self.catalog if entry.model == model and number in (0, entry.version)][::-1]

    async def operate(self, action: str, model: str, parameters: dict[str, Any] | None = None, who: str = "") -> None:
        """Load or unload a model, as a client of a data door asks. who: the caller's name, "" where it is not known"""
        if not self._repository_api:
            raise Unsupported(
                "loading and unloading through the data doors is switched off (the default where other machines can "
                "reach them; repository_api: true switches it on)"
            )
        for name in parameters or ():
            if name == "config" or name.startswith("file:"):
                raise Unsupported(f"{name!r} is not taken: a version's files and settings lie in the repository")
        if not any(entry.model == model for entry in self.catalog):
            raise NotFound(f"model {model!r} is not in the repository")
        await self._operations.operate(action, model, who)

    async def change(self, action: str, model: str, who: str = "") -> None:
        """Load or unload a model by a door that the operator has opened for that alone. who: see `operate`"""
        await self._operations.operate(action, model, who)

    def statistics(self, model: str = "", version: str = "") -> list[ModelStatistics]:
        """What this worker did since it started. Raises NotFound for an unknown model or version."""
        if model:
            self.model_ready(model, version)
        wall, clock = time.time(), self.dataplane.clock()
        return [
            _statistics(name, number, item, wall - clock)
            for name, number, item in self.dataplane.statistics(model, version)
        ]

    def config(self, model: str, version: str = "") -> dict[str, Any]:
        """Triton's model configuration, as far as it has a meaning here."""
        batcher = self.dataplane.bind(model, version)
        ref, signature = batcher.handle.ref, batcher.handle.signature
        first = 1 if signature.batchable else 0
        config: dict[str, Any] = {
            "name": model,
            "platform": batcher.handle.loaded.platform,
            "backend": batcher.handle.loaded.platform.rpartition("_")[2],
            "max_batch_size": ref.max_batch_rows if signature.batchable else 0,
            "input": [_config_tensor(spec, first) for spec in signature.inputs],
            "output": [_config_tensor(spec, first) for spec in signature.outputs],
            "version_policy": {"specific": {"versions": self.dataplane.ready_versions(model)}},
        }
        if signature.batchable:
            config["dynamic_batching"] = {}
        return config

    def raw_input(self, model: str, version: str) -> tuple[Batcher, TensorSpec]:
        """The only input of a model, for a body without any JSON."""
        batcher = self.dataplane.bind(model, version)
        inputs = batcher.handle.signature.inputs
        if len(inputs) != 1:
            raise InvalidInput(f"a raw body needs a model with one input; {model!r} has {len(inputs)}")
        return batcher, inputs[0]


def _config_tensor(spec: TensorSpec, first: int) -> dict[str, Any]:
    return {
        "name": spec.name,
        "data_type": CONFIG_TYPES.get(spec.datatype, f"TYPE_{spec.datatype}"),
        "dims": list(spec.shape[first:]),
    }


def _statistics(name: str, version: int, item: VersionStatistics, wall_minus_clock: float) -> ModelStatistics:
    nothing = Duration(0, 0)
    last = int((item.last_inference + wall_minus_clock) * 1000) if item.last_inference else 0
    return ModelStatistics(
        name,
        str(version),
        last,
        item.row_count,
        item.executions,
        InferenceStatistics(
            success=Duration(item.successes, _ns(item.success_seconds)),
            fail=Duration(item.failures, _ns(item.failure_seconds)),
            queue=Duration(item.successes - item.hits, _ns(item.queue_seconds)),
            compute_input=nothing,
            compute_infer=Duration(item.executions, _ns(item.run_seconds)),
            compute_output=nothing,
            cache_hit=Duration(item.hits, _ns(item.hit_seconds)),
            cache_miss=nothing,
        ),
        [
            BatchStatistics(rows, nothing, Duration(int(count), _ns(seconds)), nothing)
            for rows, (count, seconds) in sorted(item.batches.items())
        ],
    )


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
