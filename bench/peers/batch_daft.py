"""Daft with a class of two processes: `python batch_daft.py MODEL SOURCE SINK`."""

from __future__ import annotations

import os
import sys
from typing import Any

import daft
import numpy as np
import onnxruntime
import pyarrow as pa
from daft import DataType, Series

FEATURES = [f"f{i}" for i in range(30)]
KIND = DataType.struct({"label": DataType.int64(), "probabilities": DataType.list(DataType.float32())})


@daft.cls(max_concurrency=2)
class Scorer:
    """A session with one thread in each process."""

    def __init__(self, model: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(model, options)

    @daft.method.batch(return_dtype=KIND, batch_size=8192)
    def score(self, *columns: Series) -> Any:
        """Columns in, a struct out."""
        table = np.empty((len(columns[0]), len(columns)), np.float32)
        for i, column in enumerate(columns):
            table[:, i] = column.to_arrow().to_numpy(zero_copy_only=False)
        label, probabilities = self.session.run(None, {"features": table})
        offsets = pa.array(np.arange(0, 2 * len(label) + 1, 2, dtype=np.int64))
        lists = pa.LargeListArray.from_arrays(offsets, pa.array(probabilities.ravel()))
        return pa.StructArray.from_arrays([pa.array(label), lists], ["label", "probabilities"])


def main(model: str, source: str, sink: str) -> None:
    os.makedirs(sink)
    rows = daft.read_parquet(f"{source}/*.parquet")
    scored = rows.select("id", Scorer(model).score(*(rows[name] for name in FEATURES)).alias("s"))
    unpacked = scored.select("id", daft.col("s")["label"], daft.col("s")["probabilities"])
    unpacked.write_parquet(sink)


if __name__ == "__main__":
    main(*sys.argv[1:])
