"""Spark's mapInArrow, two cores: `python batch_spark.py MODEL SOURCE SINK`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from pyspark.sql import SparkSession

FEATURES = [f"f{i}" for i in range(30)]


def main(model: str, source: str, sink: str) -> None:
    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master("local[2]")
    settings = {
        "spark.sql.execution.arrow.maxRecordsPerBatch": 16384,
        "spark.ui.enabled": False,
        "spark.driver.memory": "3g",
        "spark.python.worker.reuse": True,
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
    }
    for name, value in settings.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    content = spark.sparkContext.broadcast(open(model, "rb").read())  # noqa: SIM115

    def score(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(content.value, options)
        for batch in batches:
            table = batch.select(FEATURES).to_tensor(row_major=True).to_numpy()
            label, probabilities = session.run(None, {"features": table})
            offsets = pa.array(np.arange(0, 2 * len(label) + 1, 2, dtype=np.int32))
            lists = pa.ListArray.from_arrays(offsets, pa.array(probabilities.ravel()))
            yield pa.record_batch([batch.column("id"), pa.array(label), lists], ["id", "label", "probabilities"])

    rows = spark.read.parquet(source)
    scored = rows.mapInArrow(score, "id long, label long, probabilities array<float>")
    scored.write.parquet(sink)
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
