"""What `detector.architecture: mask_rcnn` can be asked for."""

from stages.models.detection.params import TwoStageParams


class NetworkParams(TwoStageParams):
    """Mask R-CNN of torchvision's parts."""

    supports = frozenset({"micro_batches", "proposals", "object_weights", "region_hooks"})
