"""COCO photographs for tests; they are not part of the repository."""

import os
from pathlib import Path

import pytest

FOLDER = "COCO_MINI"


def coco_mini() -> Path:
    """Return a folder of some hundred photographs in the layout of COCO 2017, or skip the test."""
    beside = Path(__file__).parents[3] / "coco-mini"
    folder = Path(os.environ.get(FOLDER, beside))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: set {FOLDER} to some photographs in COCO's layout")
    return folder
