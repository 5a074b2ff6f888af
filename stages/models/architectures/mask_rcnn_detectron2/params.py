"""Settings of `detector.architecture: mask_rcnn_detectron2`."""

from stages.models.detection.params import TwoStageParams


class NetworkParams(TwoStageParams):
    """Mask R-CNN built from detectron2's parts."""

    supports = frozenset({"proposals"})
