"""What a table of answers comes to, in one line: `python verify_rows.py FOLDER`. Reads a file at a time."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq


def main(folder: Path) -> None:
    rows = ids = labels = 0
    chances = 0.0
    for path in sorted(folder.rglob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(1 << 17, columns=["id", "label", "probabilities"]):
            rows += batch.num_rows
            ids += int(batch.column("id").to_numpy().sum())
            labels += int(batch.column("label").to_numpy().sum())
            chances += float(batch.column("probabilities").flatten().to_numpy()[1::2].sum(dtype=np.float64))
    print(rows, ids, labels, f"{chances:.1f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
