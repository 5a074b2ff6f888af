"""The program `ovis-dag`, which is `python -m flows` too, with the code of this folder.

This module itself imports nothing but Python, so that it can tell what is not installed.
"""

import os
import signal
import sys
import traceback
from types import FrameType

OWN = ("stages", "comparators", "fetch", "predict", "flows", "claims")


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the process's exit code."""
    if callable(signal.getsignal(signal.SIGINT)):  # not ignored, as in a script's background
        signal.signal(signal.SIGINT, _stop)
    try:
        from flows.cli import main as run

        return run(arguments)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in OWN:
            raise
        # A package that another one imports is an extra of that: a database's driver, for example.
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        ours = frame.f_globals.get("__name__", "").partition(".")[0] in (*OWN, "__main__")
        fix = "it needs the packages of flows: pip install -e '.[flows]'" if ours else "install it"
        told = f"{error}; {fix}"
        print(f"ovis-dag: {told}", file=sys.stderr)
        return 2


def _stop(number: int, frame: FrameType | None) -> None:
    """End at once. While modules are imported, a KeyboardInterrupt may be lost in a callback."""
    os.write(2, b"\novis-dag: stopped; run the same again to go on from here\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
