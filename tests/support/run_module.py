"""Runs a module as `python -m` does, in the process of the test."""

import runpy
import sys


def run_module(name: str) -> None:
    """Run package `name`; whether another test has imported its `__main__` makes no difference."""
    main = f"{name}.__main__"
    imported = sys.modules.pop(main, None)
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    finally:
        if imported is not None:
            sys.modules[main] = imported
