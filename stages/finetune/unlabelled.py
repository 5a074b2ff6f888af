"""Novel objects in pictures of which only base objects are labelled.

As they are, they teach the proposals and the classifier that novel objects are background. What the
detector itself, trained on pseudo-labels, takes for novel objects can be left out of the losses.

Shape legend: n labelled objects of a picture, k detections.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stages.common.boxes import pairwise_iou
from stages.common.detection_data import IGNORED, LabelledPicture
from stages.common.progress import track
from stages.models.mask_rcnn import MaskRcnn, predict

LABELLED_IOU = 0.5  # a detection that overlaps a labelled object this much is that object
PICTURES_AT_ONCE = 16


def ignore_novel_detections(
    model: MaskRcnn,
    pictures: Sequence[LabelledPicture],
    vocabulary: Sequence[int],
    novel: Sequence[int],
    min_score: float,
) -> list[LabelledPicture]:
    """Return the pictures with confident detections of novel classes as boxes to ignore.

    Args:
        model: the detector that fine-tuning starts from; left in inference mode.
        pictures: with their labelled objects.
        vocabulary: class indices that the detections compete in.
        novel: class indices of unlabelled classes.
        min_score: in [0, 1]; a less certain detection stays background.
    """
    result = []
    for start in track(range(0, len(pictures), PICTURES_AT_ONCE), "finetune: novel detections"):
        group = pictures[start : start + PICTURES_AT_ONCE]
        found = predict(model, [entry.picture.decode() for entry in group], [vocabulary])[0]
        for entry, prediction in zip(group, found, strict=True):
            certain = np.isin(prediction.labels, novel) & (prediction.scores >= min_score)
            result.append(add_ignored(entry, prediction.boxes_xyxy[certain]))
    return result


def add_ignored(entry: LabelledPicture, boxes_xyxy: np.ndarray) -> LabelledPicture:
    """Return the picture with boxes (k, 4) to ignore, less those that are a labelled object."""
    overlap = pairwise_iou(boxes_xyxy, entry.boxes_xyxy[entry.labels != IGNORED])
    unlabelled = boxes_xyxy[overlap.max(1, initial=0) < LABELLED_IOU]
    labels = np.full(len(unlabelled), IGNORED, entry.labels.dtype)
    return replace(
        entry,
        boxes_xyxy=np.concatenate([entry.boxes_xyxy, unlabelled.astype(np.float32)]),
        labels=np.concatenate([entry.labels, labels]),
    )
