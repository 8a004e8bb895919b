"""`octoserve.yaml`: the settings of `octoserve serve`, typed, documented and closed.

A field is a flag (`--http-port`), a variable (`OCTOSERVE_HTTP_PORT`) and a key (`http_port`); a section (`models`,
`rollout`) is a key only. A flag wins over a variable, that over the file, that over the default. Every error names
the field, what was wanted, what came, and what to do. Stands beside the layers: it imports `core` only.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails

from octoserve.core.doors import DOORS, Door
from octoserve.core.errors import SettingsError
from octoserve.core.names import is_elsewhere, is_loopback
from octoserve.core.observation import Observations, Observed
from octoserve.core.slo import Slos
from octoserve.core.trace_context import Tracing
from octoserve.spec.admission import AdmissionSection, CacheSection
from octoserve.spec.asynchronous import AsyncSection
from octoserve.spec.backend import BackendSection
from octoserve.spec.batch import BatchSection, split_words, table_from
from octoserve.spec.described import describe
from octoserve.spec.observation import DriftSection, OptionalDrift, OptionalLog, PredictionLogSection
from octoserve.spec.queue import QueueSection
from octoserve.spec.rollout import AnalysisSection, BreakerSection, MetricSection, RolloutSection, StepSection
from octoserve.spec.security import JwtSection, SecuritySection, TlsSection
from octoserve.spec.slo import OptionalSlo, SloSection
from octoserve.spec.tracing import OptionalTracing, TracingSection, tracing_of
from octoserve.spec.values import Duration, Label, Policy, Port, Rows, Section, Size, parse_policy

__all__ = [
    "PREFIX",
    "SECRETS",
    "SECTIONS",
    "AdmissionSection",
    "AnalysisSection",
    "AsyncSection",
    "BackendSection",
    "BatchSection",
    "Batching",
    "BreakerSection",
    "CacheSection",
    "DriftSection",
    "JwtSection",
    "MetricSection",
    "ModelSection",
    "PredictionLogSection",
    "QueueSection",
    "RolloutSection",
    "SecuritySection",
    "ServeSettings",
    "SloSection",
    "StepSection",
    "TlsSection",
    "TracingSection",
    "check",
    "cores",
    "load",
    "parse_policy",
    "read",
    "schema",
]

PREFIX = "OCTOSERVE_"
SECRETS = ("admin_token", "rollout_store")
"""Fields that no error and no listing shows."""
SECTIONS = (
    "models", "admission", "slo", "prediction_log", "drift", "rollout", "batch", "queue", "asynchronous", "tracing",
    "security",
)  # fmt: skip
"""Fields that have no one-line form: neither flags nor variables."""


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _doors(value: Any) -> Any:
    doors = _split(value)
    return [door for door in doors if door != "v2"] if isinstance(doors, list) else doors


def _batching(value: Any) -> Any:
    return {"enabled": value} if isinstance(value, bool) else value


class Batching(Section):
    """Dynamic batching of one model."""

    enabled: bool | None = None
    """Whether concurrent requests may share a run; unset: if the model's dimension 0 counts rows."""
    max_rows: Rows | None = None
    """Rows in one run at most; unset: what the version's model.yaml says, else 64."""


class ModelSection(Section):
    """Wishes for one model; what is unset is left to `model.yaml` and to the service's own fields."""

    version_policy: Policy | None = None
    """Which versions are held: latest:N, all or specific:1,2."""
    labels: dict[Label, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Names of versions, `stable: 1`; a labelled version is held whatever the policy says."""
    batching: Annotated[Batching, BeforeValidator(_batching)] = Batching()
    """`true`, `false`, or `{enabled, max_rows}`."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Threads that one run may use; unset: 1, since one worker a core serves more than one run over all cores."""
    deadline: Duration | None = None
    """For requests that bring none; unset: `default_deadline`, else what the SLO makes it."""
    cache: CacheSection | None = None
    """Whether its answers are kept for who asks the same again: `{bytes: 64MB, ttl: 60s}`. See docs/cache.md."""
    slo: OptionalSlo = None
    """What this model promises, instead of the service's `slo`; `false` for nothing. See docs/slo.md."""
    prediction_log: OptionalLog = None
    """What is recorded of this model, taken whole instead of the service's `prediction_log`; `false` for nothing."""
    drift: OptionalDrift = None
    """How this model's drift is watched, taken whole instead of the service's `drift`; `false` for not at all."""
    rollout: RolloutSection | None = None
    """How this model's new versions meet production; taken whole, instead of the service's `rollout`."""


def _repository(value: Any) -> Any:
    """A folder, or an address as text."""
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or (is_elsewhere(value) and value.partition("://")[0] not in _ELSEWHERE):
        raise ValueError(f"a folder, or an address with {', '.join(_ELSEWHERE)},")
    return value if is_elsewhere(value) else Path(value)


_ELSEWHERE = ("s3", "gs", "az", "mlflow+http", "mlflow+https")
Repository = Annotated[Path | str, BeforeValidator(_repository), WithJsonSchema({"type": "string"})]


class ServeSettings(Section):
    """Settings of `octoserve serve`."""

    repository: Repository
    """Folder of <model>/<version>/model.onnx; or s3://bucket/folder of these, or a registry, mlflow+http://host:5000."""
    trust: Annotated[list[str], BeforeValidator(_split)] = Field(default_factory=list)
    """What versions in this repository may bring beyond data: `code` (a model.py), the name of a type that a skops
    file holds, or `pickle` (of an MLflow registry, read when it is converted). Whoever can write to the repository then
    runs code here. Empty: nothing."""
    model: Annotated[list[str], BeforeValidator(_split)] = Field(default_factory=list)
    """Serve these models only; empty: every model in the repository."""
    models: dict[str, ModelSection] = Field(default_factory=dict)
    """Wishes for single models, by name."""
    version_policy: Policy = "latest:1"
    """Which versions of a model are held: latest:N, all or specific:1,2."""
    admission: AdmissionSection = AdmissionSection()
    """Who is let in first, and how much each tenant may ask. See docs/admission.md."""
    slo: OptionalSlo = None
    """What every model promises: `{latency_p99: 20ms, availability: 99.9%, window: 30d}`. See docs/slo.md."""
    prediction_log: OptionalLog = None
    """Requests and answers of every model, recorded: `{to: predictions, sample: 10%}`. See docs/prediction-log.md."""
    drift: OptionalDrift = None
    """Drift of every model that has a reference profile, watched: `true`, or `{window: 1h, minimum: 1000}`. See
    docs/drift.md."""
    rollout: RolloutSection = RolloutSection()
    """How new versions meet production: blue-green, canary or shadow. See docs/rollouts.md."""
    batch: BatchSection = BatchSection()
    """What `octoserve batch run` scores; `serve` does not look at it. See docs/batch.md."""
    queue: QueueSection = QueueSection()
    """What `octoserve queue run` consumes; `serve` does not look at it. See docs/message-queue.md."""
    asynchronous: AsyncSection = Field(default=AsyncSection(), alias="async")
    """Models whose answers may be fetched later, and where those are kept. See docs/async.md."""
    tracing: OptionalTracing = None
    """Spans to an OpenTelemetry collector: `{endpoint: http://collector:4318, sample: 1%}`. See docs/tracing.md."""
    security: SecuritySection = SecuritySection()
    """Certificates, keys and tokens: who may ask, and for what. See docs/security.md."""

    host: str = "127.0.0.1"
    """Address of the HTTP and gRPC doors; 0.0.0.0 lets other machines in, which a container needs."""
    http_port: Port = 8080
    """Port of the HTTP door; 0 picks a free one."""
    grpc_port: Port = 8081
    """Port of the gRPC door; 0 picks a free one."""
    admin_host: str = "127.0.0.1"
    """Address of the admin API; beyond loopback only with a token."""
    admin_port: Port = 8082
    """Port of the admin API and of /metrics; 0 picks a free one."""
    admin_token: str | None = Field(None, repr=False)
    """Bearer token of the admin API; better given as OCTOSERVE_ADMIN_TOKEN than as a flag, which ps shows."""
    protect_metrics: bool = False
    """Whether /metrics wants the token too; scrapers mostly have none."""

    workers: Annotated[int, Field(ge=1, le=1024)] = Field(default_factory=lambda: cores())
    """Worker processes; default one a core that this process may use."""
    state_dir: Path = Path(".octoserve")
    """Where digests, holds, labels and the generation are kept; several services may share it."""
    rollout_store: str | None = Field(None, repr=False)
    """postgresql://user:password@host/database that all replicas of this service share, so that a rollout is one over
    all of them; unset: the state directory, for one replica. Better given as OCTOSERVE_ROLLOUT_STORE than as a flag."""
    keep_rollouts: Annotated[Duration, Field(ge=0)] = 400 * 86400.0
    """How long a rollout and its audit log are kept after its end, 0 for ever; more than a year, so that a yearly audit
    finds all of it. What is left of the log still verifies."""
    ports_file: Path | None = None
    """Written once the service is ready: {"http": .., "grpc": .., "admin": .., "pid": ..}."""

    max_body: Size = 64 << 20
    """Bytes of one request body, also after decompression."""
    max_buffered: Size = 512 << 20
    """Bytes of all bodies that one worker holds at a time."""
    max_connections: Annotated[int, Field(ge=1)] = 10_000
    """Open connections of one worker."""
    receive_timeout: Duration = 30.0
    """From the first byte of a request to its last; cuts slow and half-open clients."""
    idle_timeout: Duration = 75.0
    """A kept connection without a request; longer than the 60 s of common load balancers."""
    max_queue: Annotated[int, Field(ge=1)] = 1024
    """Requests of a model that wait or run in one worker; one more is answered 429."""
    default_deadline: Duration | None = None
    """For requests that bring no deadline; unset: what the SLO makes it, else as long as their connection lives."""
    max_batch_bytes: Size = 16 << 20
    """Bytes of inputs that one run may merge."""
    doors: Annotated[list[Door], BeforeValidator(_doors)] = Field(default_factory=lambda: list(DOORS))
    """Beside V2: v1, mlflow, predict and openapi over HTTP, tensorflow over gRPC; unset: all, v2: none."""
    default_model: str | None = None
    """The model of paths that name none, /predict and /invocations; unset: the only model there is."""
    multi_model: Path | None = None
    """Folder below which SageMaker puts the models of a multi-model container: POST /models loads one, DELETE unloads
    it, for whoever reaches the HTTP port. Unset: off; `octoserve sagemaker` sets it where it is told to."""
    repository_api: bool | None = None
    """Whether clients may load and unload models through the data doors; unset: only if `host` is loopback."""

    settle: Duration = 2.0
    """How long a version folder's files must have rested before it is loaded."""
    scan: Duration = 1.0
    """How often the repository is looked at."""
    repository_cache: Path | None = None
    """Where a repository elsewhere is kept; services and jobs may share it. Unset: `cache` in the state directory."""
    repository_versions: Annotated[int, Field(ge=1)] = 3
    """How many of a model's newest versions are fetched from elsewhere, beside those that policy, labels and rollouts
    name."""
    repository_poll: Annotated[Duration, Field(ge=0.1)] = 10.0
    """How often a repository elsewhere is asked what it has: one listing."""
    grace: Duration = 30.0
    """From SIGTERM to the end; what is in flight may finish. Kubernetes kills after 30 s."""
    hang: Duration = 15.0
    """A worker that does not answer the supervisor for so long is replaced."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged."""
    log_format: Literal["text", "json"] = "text"
    """How it is logged."""

    def cache_folder(self) -> Path:
        """Where a repository elsewhere is kept."""
        return (self.repository_cache or self.state_dir / "cache").absolute()

    def slos(self) -> Slos:
        """What each model promises."""
        own = {name: section for name, section in self.models.items() if "slo" in section.model_fields_set}
        return Slos(
            default=self.slo.promise() if self.slo is not None else None,
            models={name: section.slo.promise() if section.slo else None for name, section in own.items()},
        )

    def spans(self) -> Tracing | None:
        """What is recorded of requests; None for nothing. Raises SettingsError for a variable that says nonsense."""
        return tracing_of(self.tracing, os.environ)

    def observations(self) -> Observations:
        """What is observed of each model. Raises SettingsError."""
        default = _observed("", self.prediction_log, self.drift)
        models = {}
        for name, section in self.models.items():
            given = section.model_fields_set
            record = section.prediction_log if "prediction_log" in given else self.prediction_log
            models[name] = _observed(f"models.{name}.", record, section.drift if "drift" in given else self.drift)
        return Observations(default=default, models={n: one for n, one in models.items() if one != default})

    def clients_may_load(self) -> bool:
        """`repository_api`, or what is the default for this `host`."""
        return is_loopback(self.host) if self.repository_api is None else self.repository_api


def _observed(where: str, record: PredictionLogSection | None, drift: DriftSection | None) -> Observed:
    if record is not None and drift is not None and drift.sample not in (None, record.sample):
        raise SettingsError(
            f"{where}drift.sample: requests are drawn once, for the prediction log too, whose sample is "
            f"{record.sample:g}; {drift.sample:g} came: leave it out"
        )
    return Observed(log=record.settings() if record else None, drift=drift.settings() if drift else None)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def schema() -> dict[str, Any]:
    """JSON Schema of octoserve.yaml."""
    made = ServeSettings.model_json_schema()
    describe(made, ServeSettings)
    made.update({"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "octoserve.yaml"})
    made["properties"]["workers"]["description"] += " (unset: one a core)"
    made.pop("required", None)  # the repository may come by flag or variable
    return made


def load(
    flags: Mapping[str, Any], environ: Mapping[str, str] | None = None, spec: str | Path | None = None
) -> ServeSettings:
    """Settings from all sources. `flags` whose value is None were not given. Raises SettingsError."""
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    source: dict[str, str] = {}
    path = spec or environ.get(f"{PREFIX}SPEC")
    if path:
        for key, value in read(Path(path)).items():
            values[key], source[key] = value, f"{path}: {key}"
    for key in ServeSettings.model_fields:
        if key in SECTIONS:
            continue
        variable = PREFIX + key.upper()
        if environ.get(variable):
            values[key], source[key] = environ[variable], variable
        if flags.get(key) is not None and flags[key] != []:
            values[key], source[key] = flags[key], "--" + key.replace("_", "-")
    given = flags.get("async_models") or _split(environ.get(f"{PREFIX}ASYNC") or [])
    if given and isinstance(values.get("async", {}), dict):
        values["async"] = {**values.get("async", {}), "models": given}
    return check(values, source, str(path) if path else "")


def check(values: Mapping[str, Any], source: Mapping[str, str], path: str = "") -> ServeSettings:
    """Settings from plain values. `source` names where each came from, for errors."""
    if "repository" not in values:
        raise SettingsError(
            "repository: the folder that holds <model>/<version>/model.onnx is wanted, none was given; "
            "pass --repository, set OCTOSERVE_REPOSITORY or write `repository:` into the spec"
        )
    try:
        settings = ServeSettings.model_validate(dict(values))
    except ValidationError as error:
        lines = [_explain(detail, source, path) for detail in error.errors()]
        raise SettingsError("\n".join(lines)) from None
    settings.observations()  # what two sections say must go together
    tenants, security = settings.admission.tenants, settings.security
    if tenants is not None and tenants.key == "caller:name" and security.keys is None and security.jwt is None:
        raise SettingsError(
            "admission.tenants.key: caller:name is whom security knows, and it asks nobody; set security.keys or "
            "security.jwt, or name a header:NAME"
        )
    if settings.multi_model is not None and is_elsewhere(settings.repository):
        raise SettingsError(
            f"multi_model: SageMaker's models are put into the repository, so a folder is wanted as repository; "
            f"{settings.repository} came"
        )
    return settings


def read(path: Path) -> dict[str, Any]:
    """The mapping in a spec file; relative paths in it are taken from the file's folder."""
    import yaml

    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise SettingsError(f"spec: cannot read {path}: {error.strerror}; check --spec") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise SettingsError(f"{path}: a mapping of settings is wanted, a {type(data).__name__} came")
    _from_folder_of(path, data, ("repository", "state_dir", "ports_file", "repository_cache"))
    if isinstance(data.get("batch"), dict):
        _from_folder_of(path, data["batch"], ("state_dir",))
        _tables_from_folder_of(path, data["batch"])
    if isinstance(data.get("queue"), dict):
        _from_folder_of(path, data["queue"], ("state_dir",))
    _security_from_folder_of(path, data.get("security"))
    models = data.get("models")
    for section in (data, *(models.values() if isinstance(models, dict) else ())):
        record = section.get("prediction_log") if isinstance(section, dict) else None
        if isinstance(record, dict) and "://" not in str(record.get("to")):
            _from_folder_of(path, record, ("to",))
        rollout = section.get("rollout") if isinstance(section, dict) else None
        backend = rollout.get("backend") if isinstance(rollout, dict) else None
        if isinstance(backend, dict):
            _from_folder_of(path, backend, ("folder", "output"))
    return {str(key): value for key, value in data.items()}


def _tables_from_folder_of(path: Path, section: dict[str, Any]) -> None:
    """Of `batch`: files and tables, in each of the ways that they are written."""
    if isinstance(section.get("sink"), str):
        section["sink"] = table_from(path.parent, section["sink"])
    source = section.get("source")
    if isinstance(source, str):
        source = split_words(source)
    if isinstance(source, list):
        section["source"] = [table_from(path.parent, each, True) if isinstance(each, str) else each for each in source]


def _security_from_folder_of(path: Path, section: Any) -> None:
    if not isinstance(section, dict):
        return
    _from_folder_of(path, section, ("keys",))
    if isinstance(section.get("tls"), dict):
        _from_folder_of(path, section["tls"], ("certificate", "key", "client_ca"))
    jwt = section.get("jwt")
    if isinstance(jwt, dict):
        _from_folder_of(path, jwt, ("ca",) if "://" in str(jwt.get("jwks")) else ("ca", "jwks"))


def _from_folder_of(path: Path, section: dict[str, Any], keys: tuple[str, ...]) -> None:
    for key in keys:
        if isinstance(section.get(key), str) and not is_elsewhere(section[key]):
            section[key] = str(path.parent / section[key])


_WANTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "list_type": "a list of names",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}


def _explain(detail: ErrorDetails, source: Mapping[str, str], path: str) -> str:
    location = [str(part) for part in detail["loc"]]
    came = detail["input"]
    where = ".".join(location)
    if location[0] in source:
        where = ".".join([source[location[0]], *location[1:]])
    elif path:
        where = f"{path}: {where}"
    if detail["type"] == "extra_forbidden":
        return f"{where}: unknown field; {_near(location)}"
    if location[0] in SECRETS:
        came = "***"
    wanted = _WANTED.get(detail["type"])
    context = detail.get("ctx", {})
    if wanted is None:
        if detail["type"] == "value_error":
            wanted = str(context["error"])
        elif "ge" in context or "le" in context:
            bound = "at least {ge}" if "ge" in context else "at most {le}"
            wanted = "a number, " + bound.format(**context)
        else:
            wanted = detail["msg"].removeprefix("Input should be ")
    return f"{where}: {wanted} wanted, {came!r} came; see `octoserve spec schema`"


def _near(location: list[str]) -> str:
    fields = list(_section_at(location[:-1]).model_fields)
    near = difflib.get_close_matches(location[-1].replace("-", "_"), fields, 1)
    return f"did you mean {near[0]!r}?" if near else f"known fields: {', '.join(fields)}"


_NAMES = {"async": "asynchronous"}
"""Keys that Python takes no field by."""


def _section_at(path: list[str]) -> type[BaseModel]:
    """The section that a path through the settings leads to; mappings' names and lists' places are passed over."""
    section: type[BaseModel] = ServeSettings
    for part in path:
        field = section.model_fields.get(_NAMES.get(part, part))
        inner = _sections_in(field.annotation) if field is not None else []
        section = inner[0] if inner else section
    return section


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_in(part)]
