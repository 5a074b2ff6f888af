"""Settings of `detector.architecture: mask_rcnn`."""

from stages.models.detection.params import TwoStageParams


class NetworkParams(TwoStageParams):
    """Mask R-CNN built from torchvision's parts."""

    supports = frozenset({"micro_batches", "proposals", "object_weights", "region_hooks"})
