"""COCO's average precision of boxes and masks, by pycocotools, for a group of classes.

Shape legend: T = 10 IoU thresholds .50:.05:.95, P = 101 recall points, K classes.
"""

from contextlib import redirect_stdout
from io import StringIO
from typing import Literal

import numpy as np
from jaxtyping import Float64
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from stages.evaluation.protocols import Trial, in_group

Kind = Literal["bbox", "segm"]
KINDS: tuple[Kind, ...] = ("bbox", "segm")
EVERY_SIZE = [0.0, 1e10]  # square pixels
NO_OBJECTS = -1.0  # pycocotools' precision of a class without objects


def precision_table(
    trial: Trial, detections: list[dict], kind: Kind, max_detections: int
) -> Float64[np.ndarray, "T P K"]:
    """Return precision in [0, 1], -1 for classes without objects.

    Args:
        trial: vocabulary and ground truth; crowds are ignored, as in COCO.
        detections: COCO results of the trial's images, with bbox, segmentation and score.
        kind: whether boxes or masks are compared.
        max_detections: how many count per image and class, best first.
    """
    with redirect_stdout(StringIO()):
        evaluator = COCOeval(_coco(trial, trial.annotations), _coco(trial, detections), kind)
        evaluator.params.imgIds = sorted(trial.image_ids)
        evaluator.params.catIds = [category.id for category in trial.categories]
        evaluator.params.maxDets = [max_detections]
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [EVERY_SIZE], ["all"]
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"][..., 0, 0]


def _coco(trial: Trial, annotations: list[dict]) -> COCO:
    """Return pycocotools' index; its `loadRes` fails on an empty list of detections."""
    coco = COCO()
    coco.dataset = {
        "images": trial.images,
        "annotations": [
            {"area": annotation["bbox"][2] * annotation["bbox"][3], "iscrowd": 0, **annotation}
            | {"id": number}
            for number, annotation in enumerate(annotations, 1)  # id 0 would mean no match
        ],
        "categories": [{"id": category.id} for category in trial.categories],
    }
    coco.createIndex()
    return coco


def group_precision(
    precision: Float64[np.ndarray, "T P K"], trial: Trial, group: str
) -> Float64[np.ndarray, "T P _"]:
    """Return the columns of the group's classes that have objects."""
    members = [in_group(category, (group,)) for category in trial.categories]
    table = precision[:, :, members]
    return table[:, :, (table > NO_OBJECTS).all(axis=(0, 1))]


def average_precision(precision: Float64[np.ndarray, "T P K"]) -> dict[str, float]:
    """Return AP (mean over IoU .50:.95) and AP50 in percent, -1 if K is 0."""
    if not precision.size:
        return {"AP": NO_OBJECTS, "AP50": NO_OBJECTS}
    return {
        "AP": round(100 * float(precision.mean()), 3),
        "AP50": round(100 * float(precision[0].mean()), 3),
    }
