"""Reports as pages that a browser shows."""

from __future__ import annotations

import os
from pathlib import Path

from octoserve.core.errors import SettingsError


def show_page(html: Path, page: str) -> None:
    """Into a file, whole or not at all; `-` is standard output. Raises SettingsError."""
    if str(html) == "-":
        print(page.rstrip("\n"))
        return
    content, part = page.encode(), html.with_name(f".{html.name}.part")
    try:
        part.write_bytes(content)
        os.replace(part, html)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise SettingsError(f"--html: cannot write {html}: {error.strerror}") from None
    print(f"{html} written, {len(content):,} bytes")
