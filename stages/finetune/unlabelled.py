"""Labels novel objects in images where only base objects are annotated.

Trained on base annotations alone, the detector forgets novel classes: it assigns regions of novel
objects to base classes, and their masks get worse. So confident detections of the starting detector
can serve as labels of novel objects, beside the ground truth of base classes. No novel annotation
is read.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stages.common.geometry.boxes import SMALLEST_SIDE, pairwise_iou
from stages.common.geometry.masks import encode_mask
from stages.common.runtime.progress import track
from stages.models.detection.detector import (
    IGNORED,
    Detector,
    Prediction,
    bounded_batches,
    predict,
)
from stages.models.detection.params import InferenceParams
from stages.models.detection.samples import LabelledImage

LABELLED_IOU = 0.5  # box IoU from which a detection is taken for a labelled object
IMAGES_AT_ONCE = 16


def label_novel_detections(
    model: Detector,
    images: Sequence[LabelledImage],
    vocabulary: Sequence[int],
    novel: Sequence[int],
    inference: InferenceParams,
) -> list[LabelledImage]:
    """Return the images with confident detections of novel classes added to their objects.

    Args:
        model: the detector that fine-tuning starts from; is left in inference mode.
        images: with their labelled objects.
        vocabulary: indices of the classes that detections choose from; label k is its k-th class.
        novel: indices of the unlabelled classes.
        inference: which detections are confident enough.
    """
    result = []
    groups = bounded_batches(
        images,
        lambda entry: (entry.image.height, entry.image.width),
        inference.detections_per_image,
        IMAGES_AT_ONCE,
    )
    for group in track(groups, "finetune: novel detections", len(images), size=len):
        pixels = [entry.image.decode() for entry in group]
        found = predict(model, pixels, [vocabulary], inference)[0]
        result += [
            add_detections(entry, prediction, vocabulary, novel)
            for entry, prediction in zip(group, found, strict=True)
        ]
    return result


def add_detections(
    entry: LabelledImage,
    prediction: Prediction,
    vocabulary: Sequence[int],
    novel: Sequence[int],
) -> LabelledImage:
    """Return the image with those novel detections that do not overlap a labelled object.

    A detection needs a mask, and a box of at least one pixel per side, in pixels of the image.
    Detections come first, because ignored boxes must stay last. They have weight 1 in all losses.
    Arguments as for `label_novel_detections`.
    """
    boxes = prediction.boxes_xyxy
    overlap = pairwise_iou(boxes, entry.boxes_xyxy[entry.labels != IGNORED]).max(1, initial=0)
    kept = np.isin(prediction.labels, novel)
    kept &= (overlap < LABELLED_IOU) & prediction.masks.any((1, 2))
    kept &= ((boxes[:, 2:] - boxes[:, :2]) >= SMALLEST_SIDE).all(1)
    position = {index: place + 1 for place, index in enumerate(vocabulary)}
    labels = np.array([position[k] for k in prediction.labels[kept].tolist()], entry.labels.dtype)
    weights = entry.weights
    if weights is not None:
        weights = np.concatenate([np.ones((int(kept.sum()), 3), np.float32), weights])
    return replace(
        entry,
        boxes_xyxy=np.concatenate([boxes[kept], entry.boxes_xyxy]),
        labels=np.concatenate([labels, entry.labels]),
        segmentations=[*map(encode_mask, prediction.masks[kept]), *entry.segmentations],
        weights=weights,
    )
