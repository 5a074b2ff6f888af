"""What `detector.architecture: mask_rcnn_detectron2` can be asked for."""

from stages.models.detection.params import TwoStageParams


class NetworkParams(TwoStageParams):
    """Mask R-CNN of detectron2's parts."""

    supports = frozenset({"proposals"})
