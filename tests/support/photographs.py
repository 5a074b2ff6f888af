"""COCO photographs for tests; they are not part of the repository."""

import os
from pathlib import Path

import pytest

FOLDER = "COCO_MINI"


def coco_mini() -> Path:
    """Return a folder of some hundred photographs in the layout of COCO 2017.

    The repository has none, since each has a licence of its own; without any the test is skipped. A
    folder that was asked for has to be there.
    """
    if FOLDER in os.environ:
        asked = Path(os.environ[FOLDER])
        assert asked.is_dir(), f"{FOLDER}={asked}: no such folder"
        return asked
    beside = Path(__file__).parents[3] / "coco-mini"
    if not beside.is_dir():
        pytest.skip(f"no photographs: set {FOLDER} to a folder in COCO's layout")
    return beside
