"""What a version would hold."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec


class Draft(msgspec.Struct, kw_only=True):
    """A version that is not written yet.

    files:    its name in the version -> the file to copy, or what writes it to a path
    settings: what its model.yaml says; empty for none
    parts:    folders inside it, each laid out like a version
    """

    files: dict[str, Path | Callable[[Path], None]] = {}
    settings: dict[str, Any] = {}
    parts: dict[str, Draft] = {}

    def write(self, folder: Path) -> None:
        """Into a folder that is made for it. Raises OSError, and what a library raises that writes its file."""
        import yaml

        folder.mkdir(parents=True)
        for name, content in self.files.items():
            if isinstance(content, Path):
                shutil.copyfile(content, folder / name)
            else:
                content(folder / name)
        if self.settings:
            (folder / "model.yaml").write_text(yaml.safe_dump(self.settings, sort_keys=False, allow_unicode=True))
        for name, part in self.parts.items():
            part.write(folder / name)
