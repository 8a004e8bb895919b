"""Real documents for the `content_type` model, which is Magika's: a folder's files as messages, results as names.

python examples/queue/documents.py FOLDER               one JSON line a file
python examples/queue/documents.py --results FOLDER     path and content type of each, of results in Parquet
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

from content_type import labels, tokens


def main(folder: str, results: str = "") -> None:
    """Print one or the other."""
    if folder == "--results":
        import pyarrow.parquet as pq

        names = labels()
        rows = [row for file in Path(results).rglob("*.parquet") for row in pq.ParquetFile(file).read().to_pylist()]
        for row in sorted(rows, key=lambda row: row["message_id"]):
            scores = row["target_label"]
            print(row["message_id"], names[scores.index(max(scores))])
        return
    for file in sorted(Path(folder).rglob("*")):
        if file.is_file():
            try:
                print(json.dumps({"id": str(file), "bytes": tokens(file.read_bytes())[0].tolist()}))
            except ValueError as error:  # too short to tell anything from
                print(f"{file}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
