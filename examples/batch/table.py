"""A night's transactions for `fraud`, as Parquet: `python table.py data [--rows 200000]`.

Real rows, drawn again and again with a little noise; 200 customers from four countries. A few lack a value.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "models"))
from build import fraud_rows

FILES = 4
CUSTOMERS = 200
COUNTRIES = ("DE", "FR", "JP", "US")


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description="Make a table of transactions for the model fraud.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=200_000)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(7)
    known, _ = fraud_rows()
    each = asked.rows // FILES
    for number in range(FILES):
        drawn = known[random.integers(0, len(known), each)]
        drawn = (drawn * (1 + 0.02 * random.standard_normal(drawn.shape))).astype(np.float32)
        customers = random.integers(0, CUSTOMERS, each)
        columns = {f"f{i}": pa.array(drawn[:, i]) for i in range(drawn.shape[1])}
        lacking = random.random(each) < 0.0001
        columns["f3"] = pa.array(drawn[:, 3], mask=lacking)
        table = pa.table(
            {
                "id": np.arange(number * each, (number + 1) * each),
                "customer": [f"c{customer}" for customer in customers],
                "country": [COUNTRIES[customer % len(COUNTRIES)] for customer in customers],
                **columns,
            }
        )
        pq.write_table(table, asked.folder / f"part-{number}.parquet", row_group_size=25_000)
    print(f"{each * FILES:,} rows in {asked.folder}")


if __name__ == "__main__":
    main()
