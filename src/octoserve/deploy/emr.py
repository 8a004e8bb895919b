"""A batch job on Amazon EMR: the documents of EMR Serverless and of EMR on EC2, and what they refer to.

The documents are the inputs of CreateApplication and StartJobRun, and of RunJobFlow and AddJobFlowSteps, as the
services' API models have them. The environment's settings are those of the EMR Serverless User Guide, "Using Python
libraries" and "Using different Python versions"; the committers' those of the EMR Release Guide, "EMRFS S3-optimized
committer" and its "commit protocol".
"""

from __future__ import annotations

import gzip
import json
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from octoserve import __version__
from octoserve.core.errors import SettingsError

MODELS, ENVIRONMENT = "models.tar.gz", "environment.tar.gz"
JOB = "job.py"
_PYTHON = "./environment/bin/python3"
_MB = 1 << 20
_PER_TASK = 300
"""MB that a Python worker takes beside its model and its rows: docs/batch.md, "Speed and memory"."""

SAFE_WRITES = {
    "spark.sql.parquet.fs.optimized.committer.optimization-enabled": "true",
    "spark.sql.sources.commitProtocolClass": "org.apache.spark.sql.execution.datasources.SQLEmrOptimizedCommitProtocol",
    "spark.sql.parquet.output.committer.class": "com.amazon.emr.committer.EmrOptimizedSparkSqlParquetOutputCommitter",
    "spark.hadoop.fs.s3a.committer.name": "magic",
    "spark.hadoop.fs.s3a.committer.magic.enabled": "true",
    "spark.hadoop.mapreduce.outputcommitter.factory.scheme.s3a": "org.apache.hadoop.fs.s3a.commit.S3ACommitterFactory",
}
"""For what a DataFrame writes: never by renames in S3, which is what the `file` committer does. A job's own parts are
written by octoserve and need no committer."""


class EmrJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job, and where it runs.

    arguments: of `octoserve`, such as `batch run ...`
    assets:    s3://bucket/prefix that the files are uploaded to
    role:      ARN of the execution role of EMR Serverless; of EC2 it is the instance profile's that counts
    memory_mb: of one task, beside the JVM: the model, the bytes in flight four times
    """

    name: str
    arguments: tuple[str, ...]
    assets: str
    release: str
    role: str
    application: str = ""
    executors: int = 10
    cores: int = 4
    memory_mb: int = 1024
    instance_type: str = "m6i.xlarge"
    subnet: str = ""
    service_role: str = "EMR_DefaultRole"
    instance_profile: str = "EMR_EC2_DefaultRole"

    @property
    def overhead_gb(self) -> int:
        """Of an executor, for its Python workers: one a core."""
        return max(4, -(-self.cores * (self.memory_mb + _PER_TASK) // 1024))

    def url(self, name: str) -> str:
        """Of an uploaded file."""
        return f"{self.assets.rstrip('/')}/{name}"


def check(job: EmrJob, source: Sequence[str], sink: str) -> None:
    """Raises SettingsError for what no executor of EMR could reach."""
    for name, url in (*(("source", url) for url in source), ("sink", sink), ("assets", job.assets)):
        if not url.startswith("s3://"):
            raise SettingsError(f"{name}: s3://... wanted, {url!r} came; EMR's machines share no disk with this one")


def documents(job: EmrJob) -> dict[str, dict[str, Any]]:
    """File name -> the parameters of the API's operation of that name."""
    return {
        "serverless/create-application.json": _application(job),
        "serverless/start-job-run.json": _job_run(job),
        "ec2/run-job-flow.json": _job_flow(job),
        "ec2/add-job-flow-steps.json": {"Steps": [_step(job)]},
    }


def _shared(job: EmrJob) -> dict[str, str]:
    """Settings of Spark on both."""
    archives = (job.url(ENVIRONMENT) + "#environment", job.url(MODELS) + "#models")
    return {
        "spark.archives": ",".join(archives),
        "spark.executor.cores": str(job.cores),
        "spark.executor.memory": "4g",
        "spark.executor.memoryOverhead": f"{job.overhead_gb}g",
        "spark.dynamicAllocation.maxExecutors": str(job.executors),
        "spark.executorEnv.PYSPARK_PYTHON": _PYTHON,
        "spark.executorEnv.ARROW_DEFAULT_MEMORY_POOL": "system",
    }


def _application(job: EmrJob) -> dict[str, Any]:
    memory = 4 + job.overhead_gb
    return {
        "name": job.name,
        "releaseLabel": job.release,
        "type": "SPARK",
        "maximumCapacity": {
            "cpu": f"{job.cores * (job.executors + 1)} vCPU",
            "memory": f"{memory * (job.executors + 1)} GB",
        },
        "autoStopConfiguration": {"enabled": True, "idleTimeoutMinutes": 15},
        "tags": {"octoserve": __version__},
    }


def _job_run(job: EmrJob) -> dict[str, Any]:
    settings = _shared(job) | {
        "spark.driver.cores": str(job.cores),
        "spark.driver.memory": "4g",
        "spark.driver.memoryOverhead": f"{job.overhead_gb}g",
        "spark.emr-serverless.driverEnv.PYSPARK_DRIVER_PYTHON": _PYTHON,
        "spark.emr-serverless.driverEnv.PYSPARK_PYTHON": _PYTHON,
    }
    return {
        **({"applicationId": job.application} if job.application else {}),
        "name": job.name,
        "executionRoleArn": job.role,
        "jobDriver": {
            "sparkSubmit": {
                "entryPoint": job.url(JOB),
                "entryPointArguments": list(job.arguments),
                "sparkSubmitParameters": " ".join(f"--conf {name}={value}" for name, value in settings.items()),
            }
        },
        "configurationOverrides": {
            "applicationConfiguration": [{"classification": "spark-defaults", "properties": dict(SAFE_WRITES)}],
            "monitoringConfiguration": {"s3MonitoringConfiguration": {"logUri": job.url("logs/")}},
        },
        "retryPolicy": {"maxAttempts": 3},  # a run after a crash goes on with the job
    }


def _job_flow(job: EmrJob) -> dict[str, Any]:
    def group(role: str, count: int) -> dict[str, Any]:
        return {"InstanceRole": role, "InstanceType": job.instance_type, "InstanceCount": count}

    return {
        "Name": job.name,
        "ReleaseLabel": job.release,
        "LogUri": job.url("logs/"),
        "Applications": [{"Name": "Spark"}],
        "Instances": {
            "InstanceGroups": [group("MASTER", 1), group("CORE", job.executors)],
            "KeepJobFlowAliveWhenNoSteps": False,
            **({"Ec2SubnetId": job.subnet} if job.subnet else {}),
        },
        "Configurations": [{"Classification": "spark-defaults", "Properties": dict(SAFE_WRITES)}],
        "Steps": [_step(job)],
        "ServiceRole": job.service_role,
        "JobFlowRole": job.instance_profile,
        "Tags": [{"Key": "octoserve", "Value": __version__}],
    }


def _step(job: EmrJob) -> dict[str, Any]:
    settings = _shared(job) | {
        "spark.yarn.appMasterEnv.PYSPARK_PYTHON": _PYTHON,
        "spark.yarn.appMasterEnv.PYSPARK_DRIVER_PYTHON": _PYTHON,
        "spark.yarn.maxAppAttempts": "3",
    }
    pairs = [word for name, value in settings.items() for word in ("--conf", f"{name}={value}")]
    submit = ["spark-submit", "--deploy-mode", "cluster", *pairs, job.url(JOB), *job.arguments]
    return {
        "Name": job.name,
        "ActionOnFailure": "CONTINUE",
        "HadoopJarStep": {"Jar": "command-runner.jar", "Args": submit},
    }


_ENTRY = '''"""What spark-submit runs: the command `octoserve`, with the arguments behind this file's name."""

from octoserve.cli.main import main

main()
'''

_BUILD = """#!/bin/sh
# Builds environment.tar.gz: a CPython of its own, which runs wherever it is unpacked, with octoserve in it. A virtual
# environment would point to a Python that EMR's machines do not have. Needs uv, and Linux on EMR's processor. A wheel
# of octoserve that lies in this folder is taken where no index has it.
set -eu
cd "$(dirname "$0")"
rm -rf build && mkdir build
UV_PYTHON_INSTALL_BIN=0 uv python install --install-dir build/python {python}
python="$(ls -d build/python/cpython-{python}.*)"  # and not the link cpython-{python}-... to it
rm -f "$python"/lib/python{python}/EXTERNALLY-MANAGED
uv pip install --python "$python/bin/python3" --find-links . --requirement requirements.txt
tar -czf {archive} -C "$python" .
"""

_README = """# {name} on Amazon EMR

Nothing here has been sent anywhere. Upload what the job refers to, once and after every change of the model (a wheel of
octoserve in this folder is packaged where no index has that version):

    ./environment.sh
    for file in {job} {models} {environment}; do aws s3 cp "$file" {assets}/; done

EMR Serverless:

    aws emr-serverless create-application --cli-input-json file://serverless/create-application.json
    aws emr-serverless start-job-run --application-id ID --cli-input-json file://serverless/start-job-run.json

EMR on EC2, as a cluster that ends with the job, or as a step of one that is there:

    aws emr run-job-flow --cli-input-json file://ec2/run-job-flow.json
    aws emr add-steps --cluster-id ID --cli-input-json file://ec2/add-job-flow-steps.json

The role needs to read the source and {assets}, and to read, write, list and delete below the sink. A run that failed is
tried again by EMR, and goes on where the job was; so does starting it anew.

The parts are written by octoserve, and `_SUCCESS` in the sink says that they are whole. The committers that are set are
for what else you write with DataFrames: none of them renames objects.
"""


def render(job: EmrJob, repository: Path, models: Sequence[str], pins: Mapping[str, str], out: Path) -> list[Path]:
    """Write everything; the files. models: folders below the repository that the job needs. pins: library -> version.

    Raises SettingsError if `out` is no folder that can be written to.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    texts = {
        JOB: _ENTRY,
        "requirements.txt": "".join(f"{name}=={version}\n" for name, version in pins.items()),
        "environment.sh": _BUILD.format(python=python, archive=ENVIRONMENT),
        "README.md": _README.format(
            name=job.name, job=JOB, models=MODELS, environment=ENVIRONMENT, assets=job.assets.rstrip("/")
        ),
    }
    texts |= {name: json.dumps(document, indent=2) + "\n" for name, document in documents(job).items()}
    written = []
    try:
        for name, text in texts.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            written.append(path)
        (out / "environment.sh").chmod(0o755)
        _archive(repository, models, out / MODELS)
    except OSError as error:
        raise SettingsError(f"out: cannot write {error.filename}: {error.strerror}") from None
    return [*written, out / MODELS]


def _archive(repository: Path, models: Sequence[str], out: Path) -> None:
    """The folders as a tar file; equal content, equal bytes."""
    with (
        out.open("wb") as file,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for path in (path for model in models for path in _files(repository / model)):
            info = tarfile.TarInfo(str(path.relative_to(repository)))
            info.size = path.stat().st_size
            with path.open("rb") as data:
                archive.addfile(info, data)


def _files(root: Path) -> Iterator[Path]:
    return iter(sorted(path for path in root.rglob("*") if path.is_file()))
