"""The architectures with an hourglass, so small that a training takes seconds."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stages.common.runtime.curves import Curve
from stages.models.detection.detector import Detector
from stages.models.detection.params import TrainingParams
from stages.models.detection.samples import Annotations, LabelledImage, label_images
from stages.models.detection.supervision import Supervision
from stages.models.detection.training import train_detector
from tests.support import tiny_detector, tiny_fcos_mo
from tests.support.tiny_detector import (
    RESNETS,
    TRAINING,
    WITH_HOURGLASS,
    annotate,
    make_image,
)

IMAGE_IDS = [1, 2, 3]


@dataclass(frozen=True)
class Case:
    """An architecture, how its detector is built and trained, and what changes with a ResNet."""

    start: dict[str, Any]  # of the section `detector`
    build: Callable[..., Detector]
    training: dict[str, Any]
    resnet: dict[str, Any]


FCOS_MO = Case(
    {"architecture": "fcos_mo", "init": "random", "network": tiny_fcos_mo.NETWORK},
    tiny_fcos_mo.tiny_fcos_mo,
    TRAINING | {"loss_weights": tiny_fcos_mo.LOSSES, "background_weight": 1.0},
    tiny_fcos_mo.RESNET,
)
MASK_RCNN = Case(
    {"architecture": "mask_rcnn", "init": "random"}
    | {"network": tiny_detector.NETWORK | WITH_HOURGLASS},
    partial(tiny_detector.tiny_detector, **WITH_HOURGLASS),
    TRAINING,
    RESNETS["resnet50_fpn"],
)
CASES = {"fcos_mo": FCOS_MO, "mask_rcnn": MASK_RCNN}


def labelled(weights: list[float] | None = None) -> list[LabelledImage]:
    """Return three images with a disc and a box each, all of which weigh so much."""
    objects: dict[int, list[dict]] = {}
    for annotation in annotate(IMAGE_IDS)["annotations"]:
        objects.setdefault(annotation["image_id"], []).append(annotation)
    labels = {3: 1, 5: 2}
    images = label_images(
        map(make_image, IMAGE_IDS), Annotations(objects, {}), labels, Path("labels.json")
    )
    if weights is None:
        return images
    own = np.array([weights] * 2, np.float32)
    return [LabelledImage(p.image, p.boxes_xyxy, p.labels, [None] * 2, own) for p in images]


def train(case: Case, model: Detector, supervision: Supervision, **changes) -> list[dict]:
    """Train, and return the losses of every step."""
    curve, params = Curve(every=1), TrainingParams.model_validate(case.training | changes)
    train_detector(model, supervision, params, 7, curve)
    return curve.state()["rows"]
