"""Average precision at IoU .50 by the rules of the Open Images Challenge 2019.

Differences from COCO:

- an image counts only for classes whose presence or absence people have verified in it;
- an object counts for its own class and for all classes that include it;
- a group is one object: all detections inside its box are one correct detection together, with the
  best of their scores;
- not all objects are outlined: the first mask that matches an object without an outline is neither
  right nor wrong, further ones are wrong, and the object does not count as missed;
- AP is the area under the whole precision-recall curve, with precision made monotone.

Source: the challenge's evaluation page and its published evaluator (instance segmentation track,
weight 1 of groups). Frame: pixels of the stored image.

Shape legend: D detections and N objects of one image and class, K classes of a trial.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64
from pycocotools import mask as coco_mask

from stages.common.formats.outlines import is_outlined
from stages.evaluation.average_precision import Kind
from stages.evaluation.protocols import Trial

MATCH = 0.5  # smallest IoU with an object, or fraction of a detection inside a group
RECALL = np.linspace(0, 1, 101)
NOT_MEASURED = -1.0


@dataclass(frozen=True)
class Measured:
    """A detector's results in one trial, per class of the vocabulary.

    Attributes:
        ap50: float64 (K,) in [0, 1], -1 for classes without objects.
        curve: float64 (101, K), precision at recall 0, .01, … 1; -1 for classes without objects.
    """

    ap50: np.ndarray
    curve: np.ndarray


def expand(entries: list[dict], trial: Trial, ancestors: dict[int, list[int]]) -> list[dict]:
    """Return the entries, and a copy of each for every class that includes its class.

    Entries of classes outside the trial's vocabulary are left out.

    Args:
        entries: annotations or detections.
        trial: has the vocabulary.
        ancestors: category id → ids of all classes that include it.
    """
    ids = {category.id for category in trial.categories}
    return [
        entry | {"category_id": category_id}
        for entry in entries
        for category_id in (entry["category_id"], *ancestors.get(entry["category_id"], ()))
        if category_id in ids
    ]


def measure(trial: Trial, detections: list[dict], kind: Kind, max_detections: int) -> Measured:
    """Compare detections with objects; `expand` both first if the hierarchy counts.

    Args:
        trial: images without `verified_category_ids` are verified for all classes.
        detections: COCO results with bbox, segmentation and score.
        kind: whether boxes or masks are compared.
        max_detections: how many count per image and class, best first.
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
) -> tuple[Float64[np.ndarray, " D"], Bool[np.ndarray, " D"], int]:
    """Decide which detections of one image and class are right.

    Args:
        detections: by falling score.
        objects: groups have iscrowd 1; an object without an outline has an empty mask.
        kind: whether boxes or masks are compared.

    Returns:
        Scores and whether each is right, of the detections that are right or wrong, with one entry
        per group found; and the number of objects to find.
    """
    outlined = np.array([kind == "bbox" or is_outlined(entry) for entry in objects], bool)
    groups = np.array([bool(entry.get("iscrowd", 0)) for entry in objects], bool)
    scores = np.array([entry["score"] for entry in detections], np.float64)
    right, left_out = np.zeros(len(scores), bool), np.zeros(len(scores), bool)
    found_groups: dict[int, float] = {}

    def match(wanted: Bool[np.ndarray, " N"], by: Kind, as_group: bool) -> list[tuple[int, int]]:
        """Return (detection, best object) of each undecided detection with overlap >= MATCH."""
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
    """Return (D, N): IoU, or the fraction of each detection that lies in each group.

    A mask is compared by its bounding box with an object that has only a box.
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
    scores: Float64[np.ndarray, " D"], right: Bool[np.ndarray, " D"], num_objects: int
) -> tuple[float, Float64[np.ndarray, "101"]]:
    """Return the area under the precision-recall curve, and precision at 101 points of recall.

    Args:
        scores: of the detections of one class in all images.
        right: whether each is.
        num_objects: to find.

    Returns:
        Area in [0, 1], and precision at recall 0, .01, … 1; -1 without objects.
    """
    if not num_objects:
        return NOT_MEASURED, np.full(len(RECALL), NOT_MEASURED)
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(right[order])
    recall = np.concatenate([[0.0], hits / num_objects])
    precision = np.concatenate([[0.0], hits / np.arange(1, len(hits) + 1)])
    precision = np.maximum.accumulate(precision[::-1])[::-1]  # best at this recall or beyond
    area = float((np.diff(recall) * precision[1:]).sum())
    places = np.searchsorted(recall, RECALL - 1e-12)  # 3 of 10 is recall .30, not above it
    return area, np.append(precision, 0.0)[places]
