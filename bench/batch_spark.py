"""The Spark engine against bare `mapInArrow`, in interleaved runs: `python bench/batch_spark.py [--rows N] [--runs N]`.

Each run is a `spark-submit` on `local[2]` of its own, and says how long its job took once Spark was up. The bare
program reads Parquet, scores in `mapInArrow` with one session a Python worker, and writes Parquet with Spark's
committer. `frame` is the same with `octoserve.score` in the middle, `engine` a job of octoserve's, with its splits,
hashes, fsyncs, journal and manifest. On a busy machine only the ratios of one call mean anything.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("bare", "frame", "engine")
FEATURES = [f"f{i}" for i in range(30)]
BATCH = 16384
"""Rows in a batch of Arrow's, as in `peers/batch_spark.py`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "bench" / "batch")
    parser.add_argument(
        "--be", nargs=4, metavar=("KIND", "REPOSITORY", "SOURCE", "SINK"), help="be one of the programs"
    )
    asked = parser.parse_args()
    if asked.be:
        be(*asked.be)
        return
    repository, source = prepare(asked.folder, asked.rows, asked.files)
    measured: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for number in range(asked.runs):
        for kind in KINDS if number % 2 == 0 else reversed(KINDS):
            measured[kind].append(once(kind, repository, source, asked.folder))
            print(f"{kind:8}", "  ".join(f"{k} {v:9.2f}" for k, v in measured[kind][-1].items()), flush=True)
    report(measured, asked.rows)


def prepare(folder: Path, rows: int, files: int) -> tuple[Path, Path]:
    """The example model `fraud`, and rows that look like those that it was trained with."""
    repository, source = folder / "models", folder / f"rows-{rows}-{files}"
    if not (repository / "fraud" / "1" / "model.onnx").exists():
        build = ROOT / "examples" / "models" / "build.py"
        subprocess.run([sys.executable, build, repository, "--only", "fraud"], check=True)
    if not source.exists():
        make = [sys.executable, ROOT / "bench" / "prepare_rows.py", source, str(rows), str(files), "125000"]
        subprocess.run(make, check=True)
    return repository, source


def once(kind: str, repository: Path, source: Path, folder: Path) -> dict[str, float]:
    """One run from nothing to its end. job_s: its own part, Spark's start left out; cpu_s: of all its processes."""
    sink = folder / "spark-out"
    shutil.rmtree(sink, ignore_errors=True)
    settings = {"spark.ui.enabled": "false", "spark.driver.memory": "2g", "spark.driver.host": "127.0.0.1"}
    settings |= {"spark.driver.bindAddress": "127.0.0.1", "spark.sql.execution.arrow.maxRecordsPerBatch": str(BATCH)}
    command = [str(Path(sys.executable).with_name("spark-submit")), "--master", "local[2]"]
    command += [word for name, value in settings.items() for word in ("--conf", f"{name}={value}")]
    command += [__file__, "--be", kind, str(repository), str(source), str(sink)]
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_DIRS": str(folder / "spark-temp")}
    before, began = os.times(), time.perf_counter()
    told = subprocess.run(command, capture_output=True, text=True, env=environment)
    wall, after = time.perf_counter() - began, os.times()
    assert told.returncode == 0, told.stderr[-3000:]
    said = json.loads(told.stdout.splitlines()[-1])
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"job_s": said["seconds"], "wall_s": wall, "cpu_s": cpu}


def report(measured: dict[str, list[dict[str, float]]], rows: int) -> None:
    """Medians, and ratios of runs of one round."""
    print(f"\n{rows:,} rows, medians of {len(measured['bare'])} runs")
    for kind, runs in measured.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        print(
            f"{kind:8} {rows / middle['job_s']:10,.0f} rows/s  {middle['wall_s']:.1f} s in all  "
            f"{middle['cpu_s']:.1f} CPU s"
        )
    for kind in KINDS[1:]:
        for key in ("job_s", "cpu_s"):
            ratios = sorted(o[key] / b[key] for b, o in zip(measured["bare"], measured[kind], strict=True))
            print(f"{kind} / bare, {key}: {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")
    print(json.dumps(measured))


def be(kind: str, repository: str, source: str, sink: str) -> None:
    """One of the programs, under spark-submit."""
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    spark.range(1).count()  # Spark is up
    began = time.perf_counter()
    {"bare": bare, "frame": frame, "engine": engine}[kind](spark, repository, source, sink)
    print(json.dumps({"seconds": time.perf_counter() - began}))


def bare(spark: Any, repository: str, source: str, sink: str) -> None:
    """As tuned as it can be said in a few lines: no copies that can be spared, one session a process."""
    model = f"{repository}/fraud/1/model.onnx"

    def score(batches: Iterator[Any]) -> Iterator[Any]:
        import numpy as np
        import onnxruntime
        import pyarrow as pa

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(model, options)
        for batch in batches:
            table = batch.select(FEATURES).to_tensor(row_major=True).to_numpy()
            label, chances = session.run(None, {"features": table})
            offsets = pa.array(np.arange(0, 2 * batch.num_rows + 1, 2, dtype=np.int32))
            lists = pa.ListArray.from_arrays(offsets, pa.array(chances.ravel()))
            names = ["id", "label", "probabilities"]
            yield pa.RecordBatch.from_arrays([batch.column("id"), pa.array(label), lists], names)

    frame = spark.read.parquet(source).mapInArrow(score, "id long, label long, probabilities array<float>")
    frame.write.parquet(sink)


def frame(spark: Any, repository: str, source: str, sink: str) -> None:
    """`octoserve.score`."""
    import octoserve

    table = spark.read.parquet(source)
    octoserve.score(table, repository, "fraud", keys=["id"], columns=FEATURES).write.parquet(sink)


def engine(spark: Any, repository: str, source: str, sink: str) -> None:
    """A job, in this session."""
    import octoserve

    octoserve.batch(repository, "fraud", source, sink, keys=["id"], columns=FEATURES, engine="spark")


if __name__ == "__main__":
    main()
