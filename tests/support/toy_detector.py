"""A second architecture, for tests of the interface: its package joins those of the detector.

`main` runs the stage `detector` with it, in however many processes there are.
"""

from pathlib import Path

import torch

import stages.detector.__main__ as stage
from stages.models import architectures
from stages.models.detection.detector import Detector, build
from stages.models.detection.params import network_params
from tests.support.tiny_detector import NETWORK, make_repository

FOLDER = str(Path(__file__).with_name("architectures"))
TOY = {
    "architecture": "toy",
    "init": "random",
    "network": {
        "backbone": NETWORK["backbone"],
        "classifier": NETWORK["classifier"],
    },
}
LOSSES = {"classification": 1.0, "box": 0.2}


def join() -> None:
    """Make `detector.architecture: toy` known, as if its folder lay beside the others."""
    if FOLDER not in architectures.__path__:
        architectures.__path__.append(FOLDER)


def make_toy_repository(root: Path, **training: object) -> None:
    """Write what the stages need to train a detector of this architecture."""
    make_repository(root, {"loss_weights": LOSSES, **training}, TOY, frozen_later="heads")


def toy_detector(embeddings: torch.Tensor) -> Detector:
    return build("toy", network_params("toy").model_validate(TOY["network"]), embeddings)


def main() -> None:
    """Run the stage `detector` in this process."""
    join()
    stage.main()
