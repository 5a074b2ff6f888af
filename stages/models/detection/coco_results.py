"""Predictions in COCO's results format.

Scores and boxes are rounded (to 5 and 2 decimals) before anything is computed from them, so a file
of results gives exactly the numbers reported.
"""

from collections.abc import Sequence

import numpy as np

from stages.common.geometry.boxes import xyxy_to_xywh
from stages.common.geometry.masks import encode_mask
from stages.models.detection.detector import Prediction


def to_results(
    image_id: int,
    prediction: Prediction,
    category_ids: Sequence[int],
    min_score: float = 0.0,
    max_detections: int | None = None,
) -> list[dict]:
    """Return COCO results of one image, best first.

    Args:
        image_id: COCO's id of the image.
        prediction: in the frame of the image.
        category_ids: COCO's id of each class index.
        min_score: of a detection that counts, in [0, 1].
        max_detections: how many of the best detections count; all if None.
    """
    order = np.argsort(-prediction.scores, kind="stable")[:max_detections]
    order = order[prediction.scores[order] >= min_score]
    boxes_xywh = np.round(xyxy_to_xywh(prediction.boxes_xyxy[order].astype(np.float64)), 2)
    scores = np.round(prediction.scores[order].astype(np.float64), 5)
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": box_xywh,
            "score": score,
            "segmentation": segmentation,
        }
        for label, box_xywh, score, segmentation in zip(
            prediction.labels[order].tolist(),
            boxes_xywh.tolist(),
            scores.tolist(),
            map(encode_mask, prediction.masks[order]),
            strict=True,
        )
    ]
