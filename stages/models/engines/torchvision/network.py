"""The detector made of torchvision's parts: what `detector.engine: torchvision` means."""

from stages.models.mask_rcnn import MaskRcnn as Network

__all__ = ["Network"]
