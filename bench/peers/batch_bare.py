"""The best bare program: pyarrow reads, two threads each with a one-thread session of their own score, one writes.

    python batch_bare.py MODEL SOURCE SINK

It promises nothing after a crash. Tuned: a file to each thread, no dictionaries, no copies that can be spared.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from typing import Any

import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq

FEATURES = [f"f{i}" for i in range(30)]


def main(model: str, source: str, sink: str) -> None:
    os.makedirs(sink)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    todo: queue.Queue[str] = queue.Queue()
    for name in sorted(os.listdir(source)):
        todo.put(name)
    done: queue.Queue[Any] = queue.Queue(16)

    def worker() -> None:
        session = onnxruntime.InferenceSession(model, options)
        while True:
            try:
                name = todo.get_nowait()
            except queue.Empty:
                break
            for batch in pq.ParquetFile(f"{source}/{name}").iter_batches(8192, use_threads=False):
                table = batch.select(FEATURES).to_tensor(row_major=True).to_numpy()
                label, probabilities = session.run(None, {"features": table})
                lists = pa.FixedSizeListArray.from_arrays(pa.array(probabilities.ravel()), 2)
                columns = [batch.column("id"), pa.array(label), lists]
                done.put((name, pa.record_batch(columns, ["id", "label", "probabilities"])))
            done.put((name, None))
        done.put(None)

    threads = [threading.Thread(target=worker) for _ in range(2)]
    for thread in threads:
        thread.start()
    writers: dict[str, Any] = {}
    left = len(threads)
    while left:
        item = done.get()
        if item is None:
            left -= 1
            continue
        name, batch = item
        if batch is None:
            writers.pop(name).close()
            continue
        if name not in writers:
            writers[name] = pq.ParquetWriter(f"{sink}/{name}", batch.schema, compression="snappy", use_dictionary=False)
        writers[name].write_batch(batch, row_group_size=1 << 17)


if __name__ == "__main__":
    main(*sys.argv[1:])
