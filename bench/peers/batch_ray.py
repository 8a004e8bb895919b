"""Ray Data with two actors: `python batch_ray.py MODEL SOURCE SINK`."""

from __future__ import annotations

import sys

import onnxruntime
import pyarrow as pa
import ray

FEATURES = [f"f{i}" for i in range(30)]


class Scorer:
    """A session with one thread in each actor."""

    def __init__(self, model: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(model, options)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """A table in, a table out."""
        batch = rows.select(FEATURES).combine_chunks().to_batches()[0]
        label, probabilities = self.session.run(None, {"features": batch.to_tensor(row_major=True).to_numpy()})
        lists = pa.FixedSizeListArray.from_arrays(pa.array(probabilities.ravel()), 2)
        return pa.table({"id": rows["id"], "label": pa.array(label), "probabilities": lists})


def main(model: str, source: str, sink: str) -> None:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    # An actor takes no core of its own: reading and writing need the same two.
    strategy = ray.data.ActorPoolStrategy(size=2)
    rows = ray.data.read_parquet(source)
    scored = rows.map_batches(
        Scorer,
        fn_constructor_args=(model,),
        batch_format="pyarrow",
        batch_size=32768,
        compute=strategy,
        num_cpus=0.5,
        zero_copy_batch=True,
    )
    scored.write_parquet(sink)
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
