"""`octoserve security key`: makes a key, shows it once, and keeps its hash."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from octoserve.core.errors import SettingsError
from octoserve.security.caller import INFER
from octoserve.security.keys import Entry, digest_of, new_key, parse_keys

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def root() -> None:
    """Keys for callers. See docs/security.md."""


@app.command()
def key(
    name: Annotated[str, typer.Option(help="Who it is for; in logs, metrics and the audit log")],
    models: Annotated[str, typer.Option(help='Models, such as fraud,risk-*; "*" for all')] = "",
    may: Annotated[str, typer.Option(help="With these models: infer, read, manage")] = "infer",
    role: Annotated[str, typer.Option(help="On the admin API: viewer, operator or admin")] = "",
    file: Annotated[Path | None, typer.Option(help="The keys' file: the key is added; without it, printed")] = None,
) -> None:
    """Make a key. It goes to standard output, once; nothing keeps it but its SHA-256."""
    made = new_key()
    entry = Entry(name, digest_of(made).hex(), _words(models), _words(may) if models else (INFER,), role)
    told = {name: value for name, value in msgspec.to_builtins(entry).items() if value and (models or name != "may")}
    line = "  - " + msgspec.json.encode(told).decode() + "\n"
    parse_keys("keys:\n" + line, "this key")
    if file is not None:
        _add(file, line)
        typer.echo(f"added to {file}, in force within a second where a service reads it", err=True)
    else:
        typer.echo(f"# for the keys' file:\nkeys:\n{line}", err=True)
    typer.echo(made)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _add(file: Path, line: str) -> None:
    """As a line of its own at the end: comments and order stay. Whole, or not at all."""
    from octoserve.patterns.online.supervisor.service_files import write_atomically

    try:
        before = file.read_text("utf-8") if file.exists() else ""
        mode = file.stat().st_mode & 0o777 if file.exists() else 0o600
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--file {file}: cannot read it: {error}") from None
    known = parse_keys(before, str(file))
    after = (before if before.endswith("\n") or not before else before + "\n") if known else "keys:\n"
    after += line
    if len(parse_keys(after, str(file))) != len(known) + 1:
        raise SettingsError(f"--file {file}: the list `keys` does not end the file; add this by hand:\n{line}")
    try:
        write_atomically(file.resolve(), after.encode(), mode)
    except OSError as error:
        raise SettingsError(f"--file {file}: cannot write it: {error.strerror}") from None
