"""How memory and time of a batch job grow with its table: `python bench/batch_scale.py 1 3 10 30 100 [--svg FILE]`.

Each job scores so many million rows, Parquet to Parquet, in a process of its own, with a model that costs next to
nothing: what is measured is the job. The table is one file under many names (hard links), so that 20 GB need no 20 GB
of disk; the job knows nothing of that, and decodes, scores and writes every row.

    python bench/batch_scale.py 20 --width 256 --limit 1GB     20 GB of rows, under RLIMIT_AS of 1 GB

Processor seconds are those of all threads. On a busy machine they alone mean something; the wall is printed beside.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper

FILE_BYTES = 100e6
"""Of rows in a file, about."""
GROUP = 50_000
UNITS = {"MB": 1 << 20, "GB": 1 << 30}


class Run(NamedTuple):
    """One job. bytes: of the rows that were decoded; peak: resident."""

    rows: int
    bytes: int
    wall_s: float
    cpu_s: float
    peak_mb: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("millions", nargs="+", type=float, help="of rows; a job each")
    parser.add_argument("--width", type=int, default=30, help="float32 numbers in a row (default: %(default)s)")
    parser.add_argument("--limit", help="of the process's addresses: 1GB")
    parser.add_argument("--workers", default="2")
    parser.add_argument("--sink-format", default="parquet")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--svg", type=Path, help="draw the runs")
    asked = parser.parse_args()
    limit = int(float(asked.limit[:-2]) * UNITS[asked.limit[-2:].upper()]) if asked.limit else None
    runs = []
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        put_model(Path(folder) / "models", asked.width)
        for millions in asked.millions:
            flags = ["--workers", asked.workers, "--sink-format", asked.sink_format]
            runs.append(once(Path(folder), round(millions * 1e6), asked.width, limit, flags))
            print(line(runs[-1]), flush=True)
    if asked.svg:
        asked.svg.write_text(drawn(runs, asked.width))


def put_model(repository: Path, width: int) -> None:
    """x FP32[-1, width] -> mean FP32[-1, 1]."""
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])
    made = helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["n", 1])
    node = helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=1)
    graph = helper.make_graph([node], "mean", [given], [made])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    (repository / "mean" / "1").mkdir(parents=True)
    onnx.save(model, repository / "mean" / "1" / "model.onnx")


def put_rows(folder: Path, rows: int, width: int) -> None:
    """Files of equal size under names of their own; what is left over is the last one."""
    each = max(GROUP, int(FILE_BYTES / (4 * width)) // GROUP * GROUP)
    folder.mkdir()
    whole = folder.parent / "whole.parquet"
    if rows >= each:
        write(whole, each, width)
    for number in range(rows // each):
        os.link(whole, folder / f"{number:06}.parquet")
    if rows % each:
        write(folder / "last.parquet", rows % each, width)
    whole.unlink(missing_ok=True)


def write(path: Path, rows: int, width: int) -> None:
    """id, and x: a list of `width`."""
    random = np.random.default_rng(0)
    type_ = pa.list_(pa.field("item", pa.float32(), nullable=False), width)
    schema = pa.schema([("id", pa.int64()), pa.field("x", type_, nullable=False)])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, rows, GROUP):
            count = min(GROUP, rows - start)
            values = pa.array(random.random(count * width, dtype=np.float32))
            columns = [pa.array(np.arange(start, start + count)), pa.FixedSizeListArray.from_arrays(values, type=type_)]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=GROUP)


def once(folder: Path, rows: int, width: int, limit: int | None, flags: Sequence[str]) -> Run:
    """From nothing to a committed sink, which is verified and removed."""
    source, sink = folder / "rows", folder / "out"
    put_rows(source, rows, width)
    command = [sys.executable, "-m", "octoserve", "batch"]
    asked = ["run", "--repository", str(folder / "models"), "--model", "mean", "--source", str(source), "--keys", "id"]
    asked += ["--sink", str(sink), "--state-dir", str(folder / "state"), "--json", *flags]

    def limited() -> None:
        if limit:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([*command, *asked], stdout=said, stderr=said, preexec_fn=limited)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - began
        said.seek(0)
        if process.returncode:
            sys.exit(said.read())
    whole = json.loads((sink / "_SUCCESS").read_text())
    if whole["rows"] != rows:
        sys.exit(f"{rows} rows wanted, {whole['rows']} came")
    subprocess.run([*command, "verify", str(sink)], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(sink)
    shutil.rmtree(source)
    return Run(rows, rows * (8 + 4 * width), wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def line(run: Run) -> str:
    """For people."""
    return (
        f"{run.rows / 1e6:8g} million rows {run.bytes / 1e9:7.2f} GB   peak {run.peak_mb:5.0f} MB   "
        f"{run.cpu_s:7.1f} CPU s ({1e6 * run.cpu_s / run.rows:.2f} us a row)   wall {run.wall_s:7.1f} s"
    )


# The picture: two panels over one logarithmic axis.

LEFT, TOP, WIDE, HIGH, BETWEEN = 70, 70, 360, 240, 120
INK, SOFT, LINE = "#1f2933", "#697586", "#0f766e"


def fitted(runs: Sequence[Run]) -> tuple[float, float]:
    """Seconds of a start and of a row: the line through the smallest and the largest run."""
    small, large = min(runs, key=lambda run: run.rows), max(runs, key=lambda run: run.rows)
    each = (large.cpu_s - small.cpu_s) / (large.rows - small.rows) if large.rows > small.rows else 0.0
    return small.cpu_s - each * small.rows, each


def drawn(runs: Sequence[Run], width: int) -> str:
    """Peak memory (linear) and processor seconds (logarithmic, beside what is linear in rows) over rows."""
    largest = max(runs, key=lambda run: run.rows)
    title = "octoserve batch: memory stays, time is linear"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDE + BETWEEN + 2 * LEFT} {TOP + HIGH + 80}" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" role="img" '
        'aria-labelledby="t d">',
        f'<title id="t">{title}</title>',
        f'<desc id="d">{"; ".join(f"{r.rows / 1e6:g} million rows: {r.peak_mb:.0f} MB, {r.cpu_s:.0f} s" for r in runs)}'
        "</desc>",
        f'<rect width="{2 * WIDE + BETWEEN + 2 * LEFT}" height="{TOP + HIGH + 80}" rx="14" fill="#ffffff" '
        'stroke="#d5dae1"/>',
    ]
    low, high = math.log10(min(r.rows for r in runs)), math.log10(largest.rows)
    least, most = math.log10(min(r.cpu_s for r in runs)) - 0.2, math.log10(largest.cpu_s) + 0.1
    ceiling = 100 * math.ceil(max(r.peak_mb for r in runs) / 100 + 1)

    def across(rows: float) -> float:
        return WIDE * (math.log10(rows) - low) / ((high - low) or 1)

    def panel(at: int, name: str, up: Sequence[tuple[float, str]], points: Sequence[tuple[Run, float, str]]) -> None:
        parts.append(f'<g transform="translate({at} {TOP})">')
        parts.append(f'<text x="0" y="-28" font-size="16" font-weight="700" fill="{INK}">{name}</text>')
        for height, label in up:
            y = HIGH * (1 - height)
            parts.append(f'<line x1="0" x2="{WIDE}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4e7eb"/>')
            parts.append(f'<text x="-10" y="{y + 4:.1f}" font-size="12" fill="{SOFT}" text-anchor="end">{label}</text>')
        for run, height, label in points:
            x, y = across(run.rows), HIGH * (1 - height)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{LINE}"/>')
            parts.append(
                f'<text x="{x:.1f}" y="{y - 11:.1f}" font-size="12" fill="{INK}" text-anchor="middle">{label}</text>'
            )
            parts.append(
                f'<text x="{x:.1f}" y="{HIGH + 22}" font-size="12" fill="{SOFT}" text-anchor="middle">'
                f"{run.rows / 1e6:g}</text>"
            )
        parts.append(
            f'<text x="{WIDE / 2}" y="{HIGH + 48}" font-size="13" fill="{SOFT}" text-anchor="middle">'
            f"million rows of {width} float32</text>"
        )

    steps = range(0, ceiling + 1, 100 if ceiling <= 600 else 200)
    panel(
        LEFT, "peak memory, MB", [(mb / ceiling, str(mb)) for mb in steps],
        [(r, r.peak_mb / ceiling, f"{r.peak_mb:.0f}") for r in runs],
    )  # fmt: skip
    parts.append("</g>")

    def rise(seconds: float) -> float:
        return (math.log10(seconds) - least) / (most - least)

    decades = [10**e for e in range(math.ceil(least), math.floor(most) + 1)]
    panel(
        LEFT + WIDE + BETWEEN, "processor seconds", [(rise(s), f"{s:g}") for s in decades],
        [(r, rise(r.cpu_s), f"{r.cpu_s:.0f}") for r in runs],
    )  # fmt: skip
    start, each = fitted(runs)
    curve = [10 ** (low + (high - low) * step / 60) for step in range(61)]
    points = " ".join(f"{across(rows):.1f},{HIGH * (1 - rise(start + each * rows)):.1f}" for rows in curve)
    parts.append(f'<polyline points="{points}" fill="none" stroke="{LINE}" stroke-dasharray="6 5"/>')
    parts.append(
        f'<text x="{WIDE}" y="{HIGH - 10}" font-size="12" fill="{SOFT}" text-anchor="end">'
        f"dashed: {start:.1f} s, and {1e6 * each:.2f} us a row</text></g>"
    )
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    main()
