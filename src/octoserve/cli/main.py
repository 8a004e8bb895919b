"""`octoserve`: finds the command, imports only that one, and turns errors into one paragraph and an exit code.

Exit codes: 0 done, 1 it failed, 2 it was asked for wrongly (flags, settings).
"""

from __future__ import annotations

import os
import subprocess
import sys

from octoserve.core.errors import OctoserveError, SettingsError


def main() -> None:
    """The console script."""
    spare = _ahead(sys.argv[1:])
    try:
        run(sys.argv[1:], spare)
    except OctoserveError as error:
        print_error(str(error))
        sys.exit(2 if isinstance(error, SettingsError) else 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    finally:
        for process in spare:
            if process.stdin is not None and not process.stdin.closed:  # it was never told what to be
                process.kill()
                process.wait()


def run(arguments: list[str], spare: list[subprocess.Popen[bytes]] | None = None) -> None:
    """Run one command. Raises OctoserveError, or SystemExit with its exit code."""
    import typer

    from octoserve.cli.commands import application

    command = typer.main.get_command(application(arguments, spare or []))
    command.main(arguments, prog_name="octoserve")


def _ahead(arguments: list[str]) -> list[subprocess.Popen[bytes]]:
    """For `serve`, start one worker at once: it imports what it needs while the settings are read."""
    if arguments[:1] != ["serve"] or "--help" in arguments:
        return []
    from octoserve.patterns.online.supervisor.worker_process import spawn_blank

    return [spawn_blank()]


def print_error(text: str) -> None:
    """On standard error, `error:` in red where that is a terminal."""
    word = "\033[1;31merror:\033[0m" if sys.stderr.isatty() and "NO_COLOR" not in os.environ else "error:"
    print(f"{word} {text}", file=sys.stderr)
