"""Settings: where they come from, and what an error says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octoserve import spec
from octoserve.core.errors import SettingsError


def load(flags=None, environ=None, text=None, tmp_path=None):
    path = None
    if text is not None:
        path = tmp_path / "octoserve.yaml"
        path.write_text(text)
    return spec.load({"repository": "r", **(flags or {})}, environ or {}, path)


def test_flag_over_variable_over_file_over_default(tmp_path):
    text = "http_port: 1\ngrpc_port: 1\nadmin_port: 1\n"
    settings = load(
        {"http_port": "3"}, {"OCTOSERVE_HTTP_PORT": "2", "OCTOSERVE_GRPC_PORT": "2"}, text=text, tmp_path=tmp_path
    )
    assert (settings.http_port, settings.grpc_port, settings.admin_port) == (3, 2, 1)
    assert settings.idle_timeout == 75.0


def test_spec_file_by_variable(tmp_path):
    path = tmp_path / "o.yaml"
    path.write_text("repository: models\nmax_queue: 3\n")
    settings = spec.load({}, {"OCTOSERVE_SPEC": str(path)})
    assert settings.max_queue == 3
    assert settings.repository == tmp_path / "models", "paths are taken from the file's folder"


def test_a_repository_elsewhere_is_no_path(tmp_path):
    path = tmp_path / "o.yaml"
    path.write_text("repository: s3://bucket/models\nrepository_cache: cached\n")
    settings = spec.load({}, {"OCTOSERVE_SPEC": str(path)})
    assert settings.repository == "s3://bucket/models"
    assert settings.cache_folder() == tmp_path / "cached"
    with pytest.raises(
        SettingsError, match=r"--repository: a folder, or an address with s3, .* wanted, 'http://h/m' came"
    ):
        spec.load({"repository": "http://h/m"}, {})
    assert spec.load({"repository": "r"}, {}).cache_folder() == Path(".octoserve/cache").absolute()


def test_tables_of_a_job_are_taken_from_the_files_folder(tmp_path):
    (tmp_path / "jobs").mkdir()
    path = tmp_path / "jobs" / "o.yaml"

    def said(sink, source):
        path.write_text(json.dumps({"repository": ".", "batch": {"sink": sink, "source": source}}))
        section = spec.load({}, {}, path).batch
        return section.sink, section.source

    jobs = str(tmp_path / "jobs")
    assert said("out", "a.csv, b/*.csv") == (f"{jobs}/out", [f"{jobs}/a.csv", f"{jobs}/b/*.csv"])
    assert said("delta:t?version=3", ["/data/a.csv"]) == (f"delta:{jobs}/t?version=3", ["/data/a.csv"])
    odd = tmp_path / "exp[1]"
    odd.mkdir()
    (odd / "o.yaml").write_text(json.dumps({"repository": ".", "batch": {"source": "*.csv, a.csv"}}))
    assert spec.load({}, {}, odd / "o.yaml").batch.source == [f"{tmp_path}/exp[[]1]/*.csv", f"{odd}/a.csv"]
    for elsewhere in ("iceberg:cat/ns.t", "delta:s3://b/t", "s3://b/out", "postgresql://h/db?query=select 1, 2"):
        assert said(elsewhere, elsewhere) == (elsewhere, [elsewhere])


def test_units_and_lists():
    settings = load(
        {"model": ["a", "b"], "max_body": "2MB", "grace": "1.5m", "default_deadline": "20ms"},
        {"OCTOSERVE_REPOSITORY_API": "false"},
    )
    assert settings.model == ["a", "b"]
    assert settings.max_body == 2 << 20
    assert settings.grace == 90.0
    assert settings.default_deadline == pytest.approx(0.02)
    assert settings.repository_api is False
    assert load({}, {"OCTOSERVE_MODEL": "a, b"}).model == ["a", "b"]


def test_models_section(tmp_path):
    text = """
version_policy: {latest: 2}
models:
  fraud:
    version_policy: {specific: [1, 3]}
    labels: {stable: 1}
    batching: {max_rows: 8}
    threads: 2
    deadline: 20ms
  echo: {batching: false, version_policy: all}
"""
    settings = load(text=text, tmp_path=tmp_path)
    assert settings.version_policy == "latest:2"
    fraud, echo = settings.models["fraud"], settings.models["echo"]
    assert (fraud.version_policy, fraud.labels, fraud.batching.max_rows) == ("specific:1,3", {"stable": 1}, 8)
    assert (fraud.threads, fraud.deadline) == (2, pytest.approx(0.02))
    assert (echo.batching.enabled, echo.version_policy) == (False, "all")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http_prt: 1", "http_prt: unknown field; did you mean 'http_port'?"),
        ("http_port: abc", "http_port: a whole number wanted, 'abc' came"),
        ("http_port: 70000", "http_port: a number, at most 65535 wanted, 70000 came"),
        ("workers: 0", "workers: a number, at least 1 wanted, 0 came"),
        ("max_body: big", "max_body: a size such as 64MB, 512KB or 1GB wanted, 'big' came"),
        ("grace: 3 weeks", "grace: a duration such as 20ms, 30s or 2m wanted"),
        ("version_policy: newest", "version_policy: latest:N, all, or specific:1,2 wanted, 'newest' came"),
        ("log_level: loud", "log_level: 'debug', 'info', 'warning' or 'error' wanted, 'loud' came"),
        ("repository_poll: 0", "repository_poll: a number, at least 0.1 wanted, 0 came"),
        ("models: {m: {thread: 2}}", "models.m.thread: unknown field; did you mean 'threads'?"),
        ("models: {m: {batching: {row: 2}}}", "models.m.batching.row: unknown field"),
        ("models: {m: {labels: {'12': 2}}}", "a name that is not a number wanted, '12' came"),
        ("models: {m: {labels: {a b: 2}}}", "letters, digits, '-' and '_' wanted, 'a b' came"),
        ("models: [1]", "models: a mapping wanted"),
        ("[1, 2]", "a mapping of settings is wanted, a list came"),
        ("a: [", "not YAML"),
    ],
)
def test_errors_name_field_wish_and_fact(text, words, tmp_path):
    with pytest.raises(SettingsError) as error:
        load(text=text, tmp_path=tmp_path)
    assert words in str(error.value)
    assert "octoserve.yaml" in str(error.value)


def test_errors_name_the_flag_or_the_variable():
    with pytest.raises(SettingsError, match=r"^--http-port: a whole number wanted, 'x' came"):
        load({"http_port": "x"})
    with pytest.raises(SettingsError, match=r"^OCTOSERVE_WORKERS: a whole number wanted"):
        load({}, {"OCTOSERVE_WORKERS": "many"})
    with pytest.raises(SettingsError, match="pass --repository"):
        spec.load({}, {})
    with pytest.raises(SettingsError, match="cannot read"):
        spec.load({}, {}, "/nowhere/o.yaml")


def _properties(definitions):
    return {name: made["properties"] for name, made in definitions.items() if "properties" in made}


def test_every_field_is_documented_and_in_the_schema():
    made = spec.schema()
    for section, properties in {"ServeSettings": made["properties"], **_properties(made["$defs"])}.items():
        for name, shown in properties.items():
            assert shown.get("description"), f"{section}.{name}"
    for name, field in spec.ServeSettings.model_fields.items():
        assert (field.alias or name) in made["properties"]
    assert made["additionalProperties"] is False
    assert "required" not in made


def test_the_token_is_not_shown():
    assert "secret" not in repr(load({"admin_token": "secret"}))


@pytest.mark.parametrize(
    ("host", "given", "may"),
    [
        ("127.0.0.1", None, True),
        ("localhost", None, True),
        ("::1", None, True),
        ("0.0.0.0", None, False),
        ("::", None, False),
        ("", None, False),
        ("serving.example", None, False),
        ("0.0.0.0", "true", True),
        ("127.0.0.1", "false", False),
    ],
)
def test_clients_may_load_by_default_only_from_this_machine(host, given, may):
    assert load({"host": host, "repository_api": given}).clients_may_load() is may


@pytest.mark.parametrize(
    ("given", "doors"),
    [
        (None, ["v1", "mlflow", "predict", "openapi", "tensorflow"]),
        ("v1, predict", ["v1", "predict"]),
        (["mlflow"], ["mlflow"]),
        ("v2", []),
        ("", []),
        ("v2,v1", ["v1"]),
    ],
)
def test_doors_may_be_left_out(given: object, doors: list[str]) -> None:
    assert load({"repository": "models", "doors": given}).doors == doors


def test_an_unknown_door_is_said() -> None:
    with pytest.raises(SettingsError, match=r"--doors.*'v1', 'mlflow', 'predict', 'openapi' or 'tensorflow'"):
        load({"repository": "models", "doors": "torchserve"})
