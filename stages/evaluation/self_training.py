"""Compares the detector's masks with the pseudo-masks that it was trained on.

Mask-free OVIS claims that training on pseudo-masks filters their noise out (figure 13). For a
sample of training images, each pseudo-mask and the detector's best prediction of its class are
compared with ground truth: each with the object of the class that it fits best.
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
    """Return the ids of `number` random images, of those that have a pseudo-label."""
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
    """Return mean mask IoU of pseudo-masks and detector for base, novel and all classes.

    Args:
        predict: as for `stages.evaluation.detections.detect`.
        images: the sample.
        annotations: image id → pseudo-labels.
        truth: image id → ground truth.
        categories: base and novel classes in the order of the text embeddings.
        params: which detections count.

    Returns:
        Per group: `labels`, the number of pseudo-labels whose class has an object in the image that
        is not a crowd; `pseudo_mask_iou` and `detector_mask_iou`, their means, with 0 where the
        detector does not predict the class; `found`, the number for which it does, and both means
        over these. A mean over none is -1.
    """
    rows = []
    vocabularies = [list(range(len(categories)))]
    category_ids = [category.id for category in categories]
    what, masks_per_image = "evaluation, training images", params.inference.detections_per_image
    for batch, pixels in decoded_batches(images, what, len(images), masks_per_image):
        (predictions,) = predict(pixels, vocabularies)
        for image, prediction in zip(batch, predictions, strict=True):
            image_id = image.image_id
            results = to_results(
                image_id, prediction, category_ids, max_detections=params.max_detections
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
    """Return (n, 3): category id, IoU of the pseudo-mask, IoU of the detection or -1."""
    comparable = np.isin(labels.category_ids, objects.category_ids)
    labels = labels.select(comparable)
    _, first = np.unique(detections.category_ids, return_index=True)  # detections are best first
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
