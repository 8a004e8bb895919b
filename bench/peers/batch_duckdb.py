"""DuckDB with ONNX Runtime in an Arrow function: `python batch_duckdb.py MODEL SOURCE SINK`.

Two of its threads read and write; Python functions take turns under the interpreter's lock, which ONNX Runtime lets go.
Order is not kept and every thread writes its own file, as its documentation has it for speed.
"""

from __future__ import annotations

import os
import sys
import threading

import duckdb
import numpy as np
import onnxruntime
import pyarrow as pa

FEATURES = [f"f{i}" for i in range(30)]


def main(model: str, source: str, sink: str) -> None:
    os.makedirs(sink)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = threading.local()

    def score(*columns: pa.ChunkedArray) -> pa.Array:
        if not hasattr(sessions, "own"):
            sessions.own = onnxruntime.InferenceSession(model, options)
        table = np.empty((len(columns[0]), len(columns)), np.float32)
        for i, column in enumerate(columns):
            table[:, i] = column.to_numpy()
        label, probabilities = sessions.own.run(None, {"features": table})
        lists = pa.FixedSizeListArray.from_arrays(pa.array(probabilities.ravel()), 2)
        return pa.StructArray.from_arrays([pa.array(label), lists], ["label", "probabilities"])

    with duckdb.connect(config={"threads": 2, "preserve_insertion_order": False}) as connection:
        kind = connection.sqltype("STRUCT(label BIGINT, probabilities FLOAT[2])")
        connection.create_function("score", score, None, kind, type="arrow")
        scored = f"SELECT id, score({', '.join(FEATURES)}) AS s FROM read_parquet('{source}/*.parquet')"
        connection.execute(
            f"COPY (SELECT id, s.label AS label, s.probabilities AS probabilities FROM ({scored})) "
            f"TO '{sink}' (FORMAT parquet, PER_THREAD_OUTPUT, OVERWRITE_OR_IGNORE)"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
