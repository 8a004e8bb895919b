"""A table to score, as Parquet: `python prepare_rows.py FOLDER ROWS FILES ROW_GROUP`.

Columns have the means and deviations of what the example model `fraud` was trained with, and are independent.
"""

from __future__ import annotations

import itertools
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_breast_cancer


def main(folder: Path, rows: int, files: int, group: int) -> None:
    data = load_breast_cancer().data
    random = np.random.default_rng(0)
    staged = folder.with_suffix(".tmp")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    bounds = [number * rows // files for number in range(files + 1)]
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        columns: dict[str, Any] = {"id": np.arange(start, stop)}
        for i in range(data.shape[1]):
            values = random.standard_normal(stop - start) * data[:, i].std() + data[:, i].mean()
            columns[f"f{i}"] = values.astype(np.float32)
        pq.write_table(pa.table(columns), staged / f"{number:03}.parquet", row_group_size=group)
    staged.rename(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
