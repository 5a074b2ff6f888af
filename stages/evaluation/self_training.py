"""Is the detector better than its teacher? Its masks on the objects it was trained on.

Mask-free OVIS trains the detector on pseudo-masks and claims that it averages their errors out. For
a sample of training images each pseudo-mask and the detector's best prediction of the same class
are compared with the ground truth; both take the object of the class that they fit best.
"""

from collections.abc import Sequence

import numpy as np

from stages.common.formats.categories import Category
from stages.common.formats.coco import Instances, best_mask_iou, make_instances
from stages.common.formats.stored_images import AnyImage
from stages.evaluation.detections import Predict, decoded_batches
from stages.evaluation.params import EvaluationParams
from stages.evaluation.protocols import in_group
from stages.models.detection.coco_results import to_results

NOTHING = -1.0


def choose_images(
    annotations: dict[int, list[dict]], number: int, random: np.random.Generator
) -> set[int]:
    """Return the ids of `number` images, drawn from those that have a pseudo-label."""
    labelled = np.sort(np.array(list(annotations), np.int64))
    return set(random.permutation(labelled)[:number].tolist())


def measure_training_objects(
    predict: Predict,
    images: Sequence[AnyImage],
    annotations: dict[int, list[dict]],
    truth: dict[int, list[dict]],
    categories: list[Category],
    params: EvaluationParams,
) -> dict[str, dict[str, float]]:
    """Return mean mask IoU of teacher and detector for base, novel and all classes.

    Args:
        predict: as `stages.evaluation.detections.detect` takes it.
        images: the sample.
        annotations: pseudo-labels per image.
        truth: ground truth per image.
        categories: base and novel classes in the order of the text embeddings.
        params: which detections count.

    Returns:
        Per group: labels, how many were compared (those whose class is in the image, not only as
        a crowd); pseudo_mask_iou and detector_mask_iou over them, 0 where the detector has no
        prediction of the class; found, how many it has one for, and both means over these.
    """
    rows = []
    vocabularies = [list(range(len(categories)))]
    category_ids = [category.id for category in categories]
    for batch, pixels in decoded_batches(images, "evaluation, training images", len(images)):
        (predictions,) = predict(pixels, vocabularies)
        for image, prediction in zip(batch, predictions, strict=True):
            image_id = image.image_id
            results = to_results(
                image_id, prediction, category_ids, params.min_score, params.max_detections
            )
            labels = make_instances(annotations[image_id])
            objects = make_instances(truth.get(image_id, []))
            rows.append(_compare(labels, make_instances(results), objects.select(~objects.crowd)))
    joined = np.concatenate(rows) if rows else np.zeros((0, 3))
    groups = {}
    for group in ("base", "novel", "all"):
        ids = [category.id for category in categories if in_group(category, (group,))]
        groups[group] = _summary(joined[np.isin(joined[:, 0], ids)])
    return groups


def _compare(labels: Instances, detections: Instances, objects: Instances) -> np.ndarray:
    """Return (n, 3): class, IoU of the pseudo-mask, of the detection (-1 if there is none)."""
    comparable = np.isin(labels.category_ids, objects.category_ids)
    labels = labels.select(comparable)
    _, first = np.unique(detections.category_ids, return_index=True)  # they come best first
    tops = detections.select(np.isin(np.arange(len(detections)), first))
    ious = best_mask_iou(tops, objects)
    top_iou = dict(zip(tops.category_ids.tolist(), ious.tolist(), strict=True))
    detected = [top_iou.get(category_id, NOTHING) for category_id in labels.category_ids.tolist()]
    return np.stack([labels.category_ids, best_mask_iou(labels, objects), detected], axis=1)


def _summary(rows: np.ndarray) -> dict[str, float]:
    found = rows[rows[:, 2] > NOTHING]
    return {
        "labels": len(rows),
        "pseudo_mask_iou": _mean(rows[:, 1]),
        "detector_mask_iou": _mean(rows[:, 2].clip(min=0)),
        "found": len(found),
        "found_pseudo_mask_iou": _mean(found[:, 1]),
        "found_detector_mask_iou": _mean(found[:, 2]),
    }


def _mean(values: np.ndarray) -> float:
    return round(float(values.mean()), 5) if len(values) else NOTHING
