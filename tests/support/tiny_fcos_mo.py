"""FCOS-MO so small that a training takes seconds."""

import torch

from stages.models.detection.detector import Detector, build
from stages.models.detection.params import network_params
from tests.support.tiny_detector import EMBEDDINGS, HOURGLASS
from tests.support.tiny_detector import NETWORK as MASK_RCNN

NETWORK = {
    "backbone": MASK_RCNN["backbone"],
    "resize": {"shorter_side": 64, "longer_side": 64},
    "tower_layers": 1,
    "locations": {"finest_level": 0, "regressed_up_to": [10.0, 20.0], "centre_radius": 1.5},
    "focal": {"alpha": 0.25, "gamma": 2.0, "prior": 0.01},
    "classifier": {"similarity": "cosine", "temperature": 0.1, "background": "learned"},
    "mask_head": HOURGLASS,
}
LOSSES = {"classification": 1.0, "box": 1.0, "centerness": 1.0, "mask": 1.0}
# ResNet-50 as in FCOS: strides 8 to 128, and masks of stride 4.
RESNET = {
    "backbone": {
        "kind": "resnet50_fpn",
        "pyramid_width": 16,
        "frozen_stages": 2,
        "extra_levels": "p6p7",
    },
    "locations": {
        "finest_level": 1,
        "regressed_up_to": [8.0, 16.0, 24.0, 32.0],
        "centre_radius": 1.5,
    },
}


def tiny_fcos_mo(embeddings: torch.Tensor = EMBEDDINGS, **changes: dict) -> Detector:
    """Return one with the same weights each time."""
    torch.manual_seed(0)
    params = network_params("fcos_mo").model_validate(NETWORK | changes)
    return build("fcos_mo", params, embeddings)
