"""Settings of `detector.architecture: mask_rcnn_detectron2`."""

from typing import Any

from pydantic import field_validator

from stages.models.detection.mask_head_params import ConvolutionsParams
from stages.models.detection.params import TwoStageParams


class NetworkParams(TwoStageParams):
    """Mask R-CNN built from detectron2's parts."""

    supports = frozenset({"proposals"})

    mask_head: ConvolutionsParams

    @field_validator("mask_head", mode="before")
    @classmethod
    def _no_hourglass(cls, mask_head: Any) -> Any:
        if isinstance(mask_head, dict) and mask_head.get("kind") == "hourglass":
            raise ValueError(
                "kind: hourglass is not built of detectron2's parts; set it to convolutions, or"
                " architecture to mask_rcnn"
            )
        return mask_head
