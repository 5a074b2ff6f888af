"""Which errors tell their user what to mend, and which are faults of ours.

An error's traceback does not leave the process that raised it, so a worker notes in the error where
it was raised.
"""

import sys
import traceback
from pathlib import Path
from typing import NoReturn

CODE = [Path(__file__).resolve().parents[3] / package for package in ("stages", "comparators")]
NOTED = "raised_in"  # attribute of an error


def note_place(error: BaseException) -> None:
    """Note the file that raised an error, which is about to go to another process."""
    setattr(error, NOTED, _place(error))


def is_for_users(error: BaseException) -> bool:
    """Say whether a user can mend what an error tells.

    It does if it names a file, or if our own code raised it with a message: ValueError, OSError and
    ModuleNotFoundError.
    """
    if not isinstance(error, ValueError | OSError | ModuleNotFoundError):
        return False
    if isinstance(error, OSError) and error.filename is not None:
        return True
    path = Path(_place(error)).resolve()
    return any(path.is_relative_to(folder) for folder in CODE)


def refuse(told: str) -> NoReturn:
    """End the program because of its input: print what to mend, and exit with code 2."""
    print(told, file=sys.stderr)
    sys.exit(2)


def _place(error: BaseException) -> str:
    if noted := getattr(error, NOTED, None):
        return noted
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_code.co_filename
