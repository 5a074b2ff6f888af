"""Average precision at IoU .50 by the rules of the Open Images Challenge 2019.

What differs from COCO's:

- an image counts for those classes only of which people have verified whether they are in it;
- an object is one of every class that includes its own;
- the box of a group is one object that any number of detections inside it find, together once;
- not all objects are outlined: a mask that finds an object with a box only is neither right nor
  wrong (a second one is wrong), and the object is not missed either;
- the area under the whole precision-recall curve counts, precision made monotone.

Source: the challenge's evaluation page and its published evaluator (instance segmentation track,
weight 1 of groups). Frame: pixels of the stored image.

Shape legend: D detections and N objects of one image and class.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from stages.common.formats.outlines import is_outlined
from stages.evaluation.average_precision import Kind
from stages.evaluation.protocols import Trial

MATCH = 0.5  # IoU with an object, or the part of a detection that lies in a group
RECALL = np.linspace(0, 1, 101)
NOT_MEASURED = -1.0


@dataclass(frozen=True)
class Measured:
    """What a detector got in one trial: a value per class of the vocabulary.

    Attributes:
        ap50: float64 (K,) in [0, 1], -1 for classes without objects.
        curve: float64 (101, K), precision at recall 0, .01, … 1; -1 for classes without objects.
    """

    ap50: np.ndarray
    curve: np.ndarray


def expand(entries: list[dict], trial: Trial, ancestors: dict[int, list[int]]) -> list[dict]:
    """Return annotations or detections, each once more for every class that includes its own.

    Classes that are not of the trial's vocabulary are left out.
    """
    ids = {category.id for category in trial.categories}
    return [
        entry | {"category_id": category_id}
        for entry in entries
        for category_id in (entry["category_id"], *ancestors.get(entry["category_id"], ()))
        if category_id in ids
    ]


def measure(trial: Trial, detections: list[dict], kind: Kind, max_detections: int) -> Measured:
    """Compare detections with objects; both expanded by the hierarchy, if it is to count.

    Args:
        trial: its images may have verified_category_ids; without, all classes are verified.
        detections: COCO results with bbox, segmentation and score.
        kind: compare boxes or masks.
        max_detections: how many of an image and class count, best first.
    """
    objects, found = _group(trial.annotations), _group(detections)
    verified = {image["id"]: image.get("verified_category_ids") for image in trial.images}
    ap50, curves = [], []
    for category in trial.categories:
        scores, right, num_objects = [np.zeros(0)], [np.zeros(0, bool)], 0
        for image_id, known in verified.items():
            here = objects.get((image_id, category.id), [])
            if known is not None and category.id not in known and not here:
                continue
            entries = found.get((image_id, category.id), [])
            entries = sorted(entries, key=lambda entry: -entry["score"])[:max_detections]
            if not here and not entries:
                continue
            scored = score_image(entries, here, kind)
            scores.append(scored[0])
            right.append(scored[1])
            num_objects += scored[2]
        ap, curve = average_precision(np.concatenate(scores), np.concatenate(right), num_objects)
        ap50.append(ap)
        curves.append(curve)
    return Measured(np.array(ap50), np.stack(curves, axis=1))


def _group(entries: Iterable[dict]) -> dict[tuple[int, int], list[dict]]:
    groups: dict[tuple[int, int], list[dict]] = defaultdict(list)
    for entry in entries:
        groups[entry["image_id"], entry["category_id"]].append(entry)
    return groups


def score_image(
    detections: list[dict], objects: list[dict], kind: Kind
) -> tuple[np.ndarray, np.ndarray, int]:
    """Say which detections of one image and class are right.

    Args:
        detections: by falling score.
        objects: with iscrowd 1 for groups, and an empty mask where there is a box only.
        kind: compare boxes or masks.

    Returns:
        Scores and whether they are right, of those that are one or the other (D' <= D); the number
        of objects to find.
    """
    outlined = np.array([kind == "bbox" or is_outlined(entry) for entry in objects], bool)
    groups = np.array([bool(entry.get("iscrowd", 0)) for entry in objects], bool)
    scores = np.array([entry["score"] for entry in detections], np.float64)
    right, left_out = np.zeros(len(scores), bool), np.zeros(len(scores), bool)
    found_groups: dict[int, float] = {}

    def match(wanted: np.ndarray, by: Kind, as_group: bool) -> list[tuple[int, int]]:
        """Return (detection, object) of each open detection whose best object is near enough."""
        places = np.flatnonzero(wanted)
        if not len(places) or not len(scores):
            return []
        overlap = _overlap(detections, [objects[k] for k in places], kind, by, as_group)
        best = overlap.argmax(axis=1)
        near = overlap[np.arange(len(scores)), best] >= MATCH
        open_ones = near & ~right & ~left_out
        return [(d, int(places[best[d]])) for d in np.flatnonzero(open_ones).tolist()]

    for by, some in ((kind, outlined), ("bbox", ~outlined)):
        taken: set[int] = set()
        for detection, place in match(some & ~groups, by, as_group=False):
            if place not in taken:  # a second detection of an object stays wrong
                taken.add(place)
                (right if outlined[place] else left_out)[detection] = True
        for detection, place in match(some & groups, by, as_group=True):
            left_out[detection] = True
            if outlined[place]:
                found_groups[place] = max(found_groups.get(place, 0.0), scores[detection])
    kept = ~left_out
    all_scores = np.concatenate([scores[kept], list(found_groups.values())])
    all_right = np.concatenate([right[kept], np.ones(len(found_groups), bool)])
    return all_scores, all_right, int(np.count_nonzero(outlined))


def _overlap(
    detections: list[dict], objects: list[dict], kind: Kind, by: Kind, as_group: bool
) -> np.ndarray:
    """Return (D, N): IoU, or the part of each detection that lies in each group.

    A detection of masks has the box of its mask where there is only a box to compare it with.
    """
    crowd = [int(as_group)] * len(objects)
    own = [entry["segmentation"] for entry in detections]
    if by == "segm":
        return np.asarray(coco_mask.iou(own, [entry["segmentation"] for entry in objects], crowd))
    boxes_xywh = (
        [entry["bbox"] for entry in detections] if kind == "bbox" else coco_mask.toBbox(own)
    )
    others_xywh = [entry["bbox"] for entry in objects]
    return np.asarray(
        coco_mask.iou(np.array(boxes_xywh, np.float64), np.array(others_xywh, np.float64), crowd)
    )


def average_precision(
    scores: np.ndarray, right: np.ndarray, num_objects: int
) -> tuple[float, np.ndarray]:
    """Return the area under the precision-recall curve, and its precision at 101 recalls.

    Args:
        scores: of the detections of one class in all images.
        right: bool, of the same shape.
        num_objects: to find; of none, area and curve are -1.
    """
    if not num_objects:
        return NOT_MEASURED, np.full(len(RECALL), NOT_MEASURED)
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(right[order])
    recall = np.concatenate([[0.0], hits / num_objects])
    precision = np.concatenate([[0.0], hits / np.arange(1, len(hits) + 1)])
    precision = np.maximum.accumulate(precision[::-1])[::-1]  # best at this recall or beyond
    area = float((np.diff(recall) * precision[1:]).sum())
    places = np.searchsorted(recall, RECALL - 1e-12)  # 3/10 found is recall .30, not above it
    return area, np.append(precision, 0.0)[places]
