"""`python -m octoserve.runtimes.importing MLFLOW_FOLDER FOLDER [--unpickle]`: one conversion, in a process of its own.

It ends with 1, and why on the last line of standard error.
"""

from __future__ import annotations

import sys
from pathlib import Path

from octoserve.core.errors import OctoserveError
from octoserve.runtimes.importing.mlflow import from_mlflow


def main(source: Path, folder: Path, unpickle: bool) -> int:
    """Write the version into `folder`, which is there and empty."""
    try:
        draft = from_mlflow(source, unpickle)
        folder.rmdir()
        draft.write(folder)
    except OctoserveError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    except Exception as error:
        print(f"it cannot be converted: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), "--unpickle" in sys.argv[3:]))
