"""Polars with ONNX Runtime inside: `python batch_polars.py MODEL SOURCE SINK`.

Its streaming engine reads, calls `map_batches` and writes at once. The function is called by one thread at a time, so
the session has two.
"""

from __future__ import annotations

import os
import sys

import numpy as np
import onnxruntime
import polars as pl

FEATURES = [f"f{i}" for i in range(30)]
SCHEMA = {"id": pl.Int64, "label": pl.Int64, "probabilities": pl.Array(pl.Float32, 2)}


def main(model: str, source: str, sink: str) -> None:
    os.makedirs(sink)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(model, options)

    def score(frame: pl.DataFrame) -> pl.DataFrame:
        if frame.is_empty():
            return pl.DataFrame(schema=SCHEMA)
        table = np.ascontiguousarray(frame.select(FEATURES).to_numpy())
        label, probabilities = session.run(None, {"features": table})
        return pl.DataFrame({"id": frame["id"], "label": label, "probabilities": probabilities}, schema=SCHEMA)

    rows = pl.scan_parquet(f"{source}/*.parquet")
    scored = rows.map_batches(score, schema=SCHEMA, streamable=True)
    scored.sink_parquet(f"{sink}/part.parquet", compression="snappy", engine="streaming")


if __name__ == "__main__":
    main(*sys.argv[1:])
