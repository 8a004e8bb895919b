"""Real documents for the `content_type` model, which is Magika's: a folder's files as messages, results as names.

python examples/queue/documents.py FOLDER               one JSON line a file
python examples/queue/documents.py --results FILE.db    path and content type of each, from the table `found`
"""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

from content_type import labels, tokens


def main(folder: str, database: str = "") -> None:
    """Print one or the other."""
    if folder == "--results":
        names = labels()
        with closing(sqlite3.connect(database)) as db:
            for path, scores in db.execute("select message_id, target_label from found order by message_id"):
                row = json.loads(scores)
                print(path, names[row.index(max(row))])
        return
    for file in sorted(Path(folder).rglob("*")):
        if file.is_file():
            try:
                print(json.dumps({"id": str(file), "bytes": tokens(file.read_bytes())[0].tolist()}))
            except ValueError as error:  # too short to tell anything from
                print(f"{file}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
