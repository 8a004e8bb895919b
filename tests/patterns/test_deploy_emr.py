"""`octoserve deploy emr`: what it renders is what the services' own API models, as botocore ships them, take."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import botocore.session
import pytest
from botocore.validate import ParamValidator

from octoserve.cli import main as cli
from octoserve.core.errors import NotFound, SettingsError
from support.batch import put_model

ROLE = "arn:aws:iam::123456789012:role/octoserve"
DOCUMENTS = {
    "serverless/create-application.json": ("emr-serverless", "CreateApplication", {"clientToken": "t"}),
    "serverless/start-job-run.json": ("emr-serverless", "StartJobRun", {"clientToken": "t", "applicationId": "00a1"}),
    "ec2/run-job-flow.json": ("emr", "RunJobFlow", {}),
    "ec2/add-job-flow-steps.json": ("emr", "AddJobFlowSteps", {"JobFlowId": "j-1"}),
}
"""Operation, and what the command line of the AWS tools adds."""


PAIRS = re.compile(r"\\uD800\\u\w{4}-\\u\w{4}\\uDFFF")
"""As Java writes what lies beyond 16 bits; Python does it by \\U00010000-\\U0010FFFF."""


def deploy(folder: Path, *more: str, sink: str = "s3://b/scores/", repository: Path | None = None) -> Path:
    if repository is None:
        repository = folder / "models"
        put_model(repository)
    flags = [
        "--assets",
        "s3://b/jobs/nightly/",
        "--release",
        "emr-7.13.0",
        "--role",
        ROLE,
        "--out",
        str(folder / "out"),
    ]
    flags += ["--repository", str(repository), "--model", "flawed", "--source", "s3://b/data/", "--sink", sink]
    with pytest.raises(SystemExit) as ended:
        cli.run(["deploy", "emr", *flags, *more])
    assert ended.value.code in (0, None)
    return folder / "out"


def patterns_of(shape, value, path=""):
    """What botocore does not check itself: patterns and sets of values."""
    if shape.type_name == "structure":
        for name, inner in value.items():
            yield from patterns_of(shape.members[name], inner, f"{path}.{name}")
    elif shape.type_name == "list":
        for inner in value:
            yield from patterns_of(shape.member, inner, path)
    elif shape.type_name == "map":
        for inner in value.values():
            yield from patterns_of(shape.value, inner, path)
    elif shape.type_name == "string":
        pattern, allowed = shape.metadata.get("pattern"), shape.metadata.get("enum")
        plain = PAIRS.sub(lambda _: r"\U00010000-\U0010FFFF", pattern or ".*")
        if not re.fullmatch(plain, value, re.DOTALL):
            yield f"{path}: {value!r} is not {pattern}"
        if allowed is not None and value not in allowed:
            yield f"{path}: {value!r} is none of {allowed}"


@pytest.mark.parametrize("more", [(), ("--subnet", "subnet-1", "--application", "00f1", "--keys", "id,day")])
def test_every_document_is_what_its_operation_takes(tmp_path: Path, more: tuple[str, ...]) -> None:
    out = deploy(tmp_path, *more)
    session = botocore.session.get_session()
    for name, (service, operation, added) in DOCUMENTS.items():
        document = {**json.loads((out / name).read_text()), **added}
        shape = session.get_service_model(service).operation_model(operation).input_shape
        report = ParamValidator().validate(document, shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"
        assert list(patterns_of(shape, document)) == [], name


def test_a_wrong_document_would_be_found(tmp_path: Path) -> None:
    """The check above can fail."""
    document = json.loads((deploy(tmp_path) / "serverless/start-job-run.json").read_text())
    shape = (
        botocore.session.get_session().get_service_model("emr-serverless").operation_model("StartJobRun").input_shape
    )
    assert "applicationId" in ParamValidator().validate(document, shape).generate_report()
    document |= {"applicationId": "NO-SUCH", "clientToken": "t", "jobDriver": {"sparkSubmit": {"entryPoint": 3}}}
    assert "entryPoint" in ParamValidator().validate(document, shape).generate_report()
    document["jobDriver"]["sparkSubmit"]["entryPoint"] = "s3://b/job.py"
    assert [line for line in patterns_of(shape, document) if "NO-SUCH" in line]


def test_both_run_the_same_job_with_the_same_settings(tmp_path: Path) -> None:
    out = deploy(tmp_path, "--keys", "id,day", "--executors", "7", "--cores", "8")
    run = json.loads((out / "serverless/start-job-run.json").read_text())["jobDriver"]["sparkSubmit"]
    (step,) = json.loads((out / "ec2/add-job-flow-steps.json").read_text())["Steps"]
    words = step["HadoopJarStep"]["Args"]
    expected = "batch run --engine spark --repository models --model flawed --version 1 --source s3://b/data/"
    expected += " --sink s3://b/scores/ --keys id,day"
    assert sorted(run["entryPointArguments"]) == sorted(expected.split())
    assert words[-len(run["entryPointArguments"]) :] == run["entryPointArguments"]
    assert run["entryPoint"] == "s3://b/jobs/nightly/job.py" in words
    serverless, ec2 = settings_of(shlex.split(run["sparkSubmitParameters"])), settings_of(words)
    for settings in (serverless, ec2):
        assert settings["spark.archives"] == (
            "s3://b/jobs/nightly/environment.tar.gz#environment,s3://b/jobs/nightly/models.tar.gz#models"
        )
        assert settings["spark.executorEnv.PYSPARK_PYTHON"] == "./environment/bin/python3"
        assert (settings["spark.executor.cores"], settings["spark.dynamicAllocation.maxExecutors"]) == ("8", "7")
        assert int(settings["spark.executor.memoryOverhead"].removesuffix("g")) * 1024 >= 8 * (4 * 64 + 300)
    assert serverless["spark.emr-serverless.driverEnv.PYSPARK_DRIVER_PYTHON"] == "./environment/bin/python3"
    assert ec2["spark.yarn.appMasterEnv.PYSPARK_PYTHON"] == "./environment/bin/python3"


def settings_of(words: list[str]) -> dict[str, str]:
    return dict(pair.split("=", 1) for flag, pair in itertools.pairwise(words) if flag == "--conf")


def test_the_arguments_are_those_of_a_command_that_can_be_read(tmp_path: Path) -> None:
    """All that a spec says comes through, and is read again as it was."""
    from octoserve.cli.batch_settings import asked

    spec = tmp_path / "octoserve.yaml"
    spec.write_text(
        "batch:\n  columns: [a, b]\n  all_columns: true\n  error_budget: 2%\n  split_size: 128MB\n  workers: 3\n"
        "  convert: round\n  prefix: p_\n  state_dir: here\n"
    )
    out = deploy(tmp_path, "--spec", str(spec))
    words = json.loads((out / "serverless/start-job-run.json").read_text())["jobDriver"]["sparkSubmit"]
    arguments = words["entryPointArguments"][2:]
    assert "--workers" not in arguments, "tasks are the workers there"
    assert "--state-dir" not in arguments
    values, name = {}, ""
    for word in arguments:
        if word.startswith("--"):
            name = word[2:].replace("-", "_")
            values[name] = True
        else:
            values[name] = word
    section = asked({name: value for name, value in values.items() if name != "repository"}, "models", None).section
    assert (section.columns, section.all_columns, section.error_budget) == (["a", "b"], True, "2%")
    assert (section.split_size, section.convert, section.prefix, section.version) == (128 << 20, "round", "p_", 1)


def test_no_write_to_s3_is_a_rename(tmp_path: Path) -> None:
    out = deploy(tmp_path)
    overrides = json.loads((out / "serverless/start-job-run.json").read_text())["configurationOverrides"]
    serverless = overrides["applicationConfiguration"][0]["properties"]
    ec2 = json.loads((out / "ec2/run-job-flow.json").read_text())["Configurations"][0]["Properties"]
    assert serverless == ec2
    assert serverless["spark.sql.parquet.fs.optimized.committer.optimization-enabled"] == "true"
    assert serverless["spark.hadoop.fs.s3a.committer.name"] == "magic"
    assert "file" not in serverless.values()


def test_the_model_goes_along_and_the_scripts_are_scripts(tmp_path: Path) -> None:
    out = deploy(tmp_path)
    with tarfile.open(out / "models.tar.gz") as archive:
        assert archive.getnames() == ["flawed/1/model.onnx"]
        archive.extractall(tmp_path / "there", filter="data")
    assert (tmp_path / "there/flawed/1/model.onnx").read_bytes() == (
        tmp_path / "models/flawed/1/model.onnx"
    ).read_bytes()
    first = (out / "models.tar.gz").read_bytes()
    os.utime(tmp_path / "models/flawed/1/model.onnx", (1, 1))
    again = deploy(tmp_path, repository=tmp_path / "models")
    assert (again / "models.tar.gz").read_bytes() == first
    subprocess.run(["sh", "-n", out / "environment.sh"], check=True)
    assert os.access(out / "environment.sh", os.X_OK)
    told = subprocess.run([sys.executable, out / "job.py", "--version"], capture_output=True, text=True, check=True)
    assert told.stdout.startswith("octoserve ")
    assert "octoserve[batch,s3]==" in (out / "requirements.txt").read_text()
    assert "aws emr-serverless start-job-run" in (out / "README.md").read_text()


UV = """#!/bin/sh
# What uv leaves behind: a Python of a patch release, and a link to it that is named by its minor release.
case "$1 $2" in
"python install") folder="$4"; minor="$5"; real="cpython-$minor.9-linux-x86_64-gnu"
  mkdir -p "$folder/$real/bin" "$folder/$real/lib/python$minor"
  echo python > "$folder/$real/bin/python3"; touch "$folder/$real/lib/python$minor/EXTERNALLY-MANAGED"
  ln -s "$real" "$folder/cpython-$minor-linux-x86_64-gnu" ;;
"pip install") echo "$@" > "$(dirname "$4")/../installed" ;;
esac
"""


def test_the_environment_is_a_python_of_its_own(tmp_path: Path) -> None:
    """With a stand-in for uv, whose downloads no test may rest on."""
    out = deploy(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "uv").write_text(UV)
    (tmp_path / "bin" / "uv").chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    for _ in range(2):  # again, over what is there
        subprocess.run([out / "environment.sh"], check=True, env={**os.environ, "PATH": path}, cwd=tmp_path)
    with tarfile.open(out / "environment.tar.gz") as archive:
        names = [name.removeprefix("./") for name in archive.getnames()]
        installed = archive.extractfile("./installed")
        assert installed is not None
        assert b"--requirement requirements.txt" in installed.read()
    assert "bin/python3" in names, "where PYSPARK_PYTHON looks for it, once it is unpacked"
    assert not [name for name in names if "EXTERNALLY-MANAGED" in name]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sink", "out/"], "sink: s3://... wanted, 'out/' came"),
        (["--source", "data/"], "source: s3://... wanted, 'data/' came"),
        (["--assets", "/mnt/jobs"], "assets: s3://... wanted"),
        (["--version", "7"], "no version 7 of 'flawed'"),
    ],
)
def test_what_no_executor_could_reach_is_refused(tmp_path: Path, flags: list[str], said: str) -> None:
    put_model(tmp_path / "models")
    given = {
        "--assets": "s3://b/j", "--release": "emr-7.13.0", "--role": ROLE, "--out": str(tmp_path / "out"),
        "--repository": str(tmp_path / "models"), "--model": "flawed", "--source": "s3://b/d/", "--sink": "s3://b/s/",
    }  # fmt: skip
    given |= dict([flags])
    with pytest.raises((SettingsError, NotFound), match=re.escape(said)):
        cli.run(["deploy", "emr", *(word for pair in given.items() for word in pair)])
    assert not (tmp_path / "out").exists()
