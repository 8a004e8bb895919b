"""What `make demo` runs: serve five real models, ask them real questions, and show what came back.

    python examples/demo.py           # leaves the service running until Ctrl-C
    python examples/demo.py --exit    # ends by itself; exit code 0 only if everything was right

Everything it makes lies under `.cache/demo`.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
from types import FrameType

NEEDED = {
    "octoserve": "octoserve itself",
    "rich": "rich",
    "numpy": "numpy",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "sklearn": "scikit-learn",
    "skl2onnx": "skl2onnx",
    "lightgbm": "lightgbm",
    "onnxmltools": "onnxmltools",
    "palmerpenguins": "palmerpenguins",
    "magika": "magika",
    "tritonclient": "tritonclient[grpc]",
    "grpc": "grpcio",
}
"""Module -> the package to install for it."""


def main() -> int:
    """Run the demo; the exit code."""
    parser = argparse.ArgumentParser(description="Serve real models, send real requests, show the answers.")
    parser.add_argument("--exit", action="store_true", help="end by itself instead of serving until Ctrl-C")
    options = parser.parse_args()
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        print(f"the demo needs {', '.join(missing)}; `make demo` installs everything into .venv", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)

    from demo_screen import Screen
    from demo_service import DemoError
    from demo_story import tell

    screen = Screen()
    try:
        tell(screen, stay=not options.exit)
    except DemoError as error:
        screen.fail(str(error))
        return 1
    except KeyboardInterrupt:
        screen.note("interrupted; the service is stopped")
        return 130
    for problem in screen.problems:
        screen.fail(problem)
    return 1 if screen.problems else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does, so that the service is stopped in order."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
