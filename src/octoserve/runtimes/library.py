"""A model library that may not be installed."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from octoserve.core.errors import BrokenVersion


def needed(module: str, extra: str, file: str) -> ModuleType:
    """The module. Raises BrokenVersion that says which extra to install, or why it cannot be imported."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.partition(".")[0] != error.name.partition(".")[0]:
            raise BrokenVersion(f"{file}: {module} cannot be imported: {error}") from None
        raise BrokenVersion(
            f"{file} needs {module}, which is not installed here: pip install 'octoserve[{extra}]', and load the model "
            "again"
        ) from None
    except Exception as error:  # a library that does not find its own libraries raises what it likes
        raise BrokenVersion(f"{file}: {module} cannot be imported: {first_line(error)}") from error


def artifact(folder: Path, names: tuple[str, ...]) -> Path:
    """The first of these files that is there. Raises BrokenVersion."""
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise BrokenVersion(f"{' or '.join(names)} is missing in {folder}")
    return found


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:500]
