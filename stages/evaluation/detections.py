"""Runs a detector on images, for all vocabularies at once; returns COCO results."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice

import numpy as np

from stages.common.formats.stored_images import AnyImage
from stages.common.runtime.prefetch import prefetch
from stages.common.runtime.progress import track
from stages.evaluation.params import EvaluationParams
from stages.evaluation.protocols import Trial
from stages.models.detection.coco_results import to_results
from stages.models.detection.detector import Prediction, bounded_batches

BATCH = 8  # images per call, at most

Predict = Callable[[list[np.ndarray], list[list[int]]], list[list[Prediction]]]


def detect(
    predict: Predict,
    images: Iterable[AnyImage],
    trials: Sequence[Trial],
    params: EvaluationParams,
    what: str = "evaluation",
) -> list[list[dict]]:
    """Return each trial's detections as COCO results, in the order of `images`, best first.

    Args:
        predict: maps images uint8 (H, W, 3) and vocabularies of class indices to predictions per
            vocabulary and image, e.g. `partial(detector.predict, model, inference=…)`.
        images: all images of the split; those of no trial are skipped.
        trials: the first one has all images and classes of the others.
        params: which detections count.
        what: the name of the work in progress reports.

    Raises:
        ValueError: an image of a trial is not among `images`.
    """
    image_ids = [trial.image_ids for trial in trials]
    vocabularies = [trial.class_indices for trial in trials]
    found: list[list[dict]] = [[] for _ in trials]
    needed, category_ids = set(image_ids[0]), [category.id for category in trials[0].categories]
    wanted = (image for image in images if image.image_id in image_ids[0])
    masks_per_image = len(trials) * params.inference.detections_per_image
    for batch, pixels in decoded_batches(wanted, what, len(needed), masks_per_image):
        predictions = predict(pixels, vocabularies)
        for trial, per_image in enumerate(predictions):
            for image, prediction in zip(batch, per_image, strict=True):
                if image.image_id in image_ids[trial]:
                    found[trial] += to_results(
                        image.image_id,
                        prediction,
                        category_ids,
                        max_detections=params.max_detections,
                    )
        needed -= {image.image_id for image in batch}
    if needed:
        raise ValueError(
            f"data/download/images: {len(needed)} images of the ground truth are missing, first"
            f" image_id {min(needed)}; run `dvc repro download`"
        )
    return found


def split_by_trial(
    results: Iterable[dict], trials: Sequence[Trial], max_detections: int
) -> list[list[dict]]:
    """Return the given COCO results of each trial's images and classes, by image id and score.

    The detector of such results cannot classify again within a trial's vocabulary, so detections of
    other classes are left out. The best `max_detections` of each image remain.
    """
    ordered = sorted(results, key=lambda result: (result["image_id"], -result["score"]))
    found = []
    for trial in trials:
        image_ids, ids = trial.image_ids, {category.id for category in trial.categories}
        own = [r for r in ordered if r["image_id"] in image_ids and r["category_id"] in ids]
        per_image = groupby(own, key=lambda result: result["image_id"])
        found.append([r for _, group in per_image for r in islice(group, max_detections)])
    return found


def decoded_batches(
    images: Iterable[AnyImage], what: str, total: int, masks_per_image: int
) -> Iterator[tuple[list[AnyImage], list[np.ndarray]]]:
    """Yield images and their pixels uint8 (H, W, 3) in lists, decoded in the background.

    Reports progress as `what`, out of `total` images. For the lists see `bounded_batches`.
    """
    batches = bounded_batches(images, lambda p: (p.height, p.width), masks_per_image, BATCH)
    decoded = prefetch(lambda batch: (batch, [p.decode() for p in batch]), batches, ahead=2)
    yield from track(decoded, what, total, size=lambda batch: len(batch[0]))
