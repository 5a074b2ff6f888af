"""The interface of a weakly supervised proposal network: which boxes show an object, of any class.

Mask-free OVIS, pseudo bounding box generation, step 2. There are two networks: a small one on top
of the small vision-language model (`language.py`), and one on an ImageNet backbone that is trained
end to end (`imagenet.py`). The stages that use one of them rely on this interface.

Shape legend: R proposals of one image, C base classes. Boxes: x0, y0, x1, y1 in pixels.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import nn

from stages.models.proposals.params import ViewSettings

Array = TypeVar("Array", np.ndarray, torch.Tensor)


class ImageFeatures(NamedTuple):
    """The features of one image, and the frame in which the network scores boxes."""

    maps: Any  # each network has a type of its own
    scale: np.ndarray  # float32 (4,): box in the image × scale = box in the frame
    image_hw: tuple[int, int]  # pixels of the frame


class WspnConfig(Protocol):
    """The sizes of a network; each network has more of its own."""

    @property
    def category_ids(self) -> list[int]:
        """The labelled classes, in the order of the class scores."""


class Wspn(nn.Module, ABC):
    """A proposal network in evaluation mode, as ranking and the comparators use it."""

    config: WspnConfig

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the weights; boxes given to the methods must be there too."""

    @abstractmethod
    def extract_features(
        self, image: UInt8[np.ndarray, "H W 3"], views: ViewSettings
    ) -> ImageFeatures:
        """Return the features of an RGB image."""

    @abstractmethod
    def score_classes(
        self, features: ImageFeatures, boxes_xyxy: Float[torch.Tensor, "R 4"]
    ) -> Float[torch.Tensor, "R C"]:
        """Return class scores in [0, 1] of boxes in the frame of `features`."""

    def assess(
        self, features: ImageFeatures, boxes_xyxy: Float[torch.Tensor, "R 4"]
    ) -> tuple[Float[torch.Tensor, "R C"], Float[torch.Tensor, " R"], Float[torch.Tensor, "R 4"]]:
        """Return class scores, qualities and regression offsets, in one pass if possible."""
        return self.score_classes(features, boxes_xyxy), *self.score_objects(features, boxes_xyxy)

    @abstractmethod
    def score_objects(
        self, features: ImageFeatures, boxes_xyxy: Float[torch.Tensor, "R 4"]
    ) -> tuple[Float[torch.Tensor, " R"], Float[torch.Tensor, "R 4"]]:
        """Return (expected IoU with an object in [0, 1], regression offsets) of boxes."""


def class_scores(
    class_logits: Float[torch.Tensor, "R C"], detection_logits: Float[torch.Tensor, "R C"]
) -> Float[torch.Tensor, "R C"]:
    """Return W: softmax over classes times softmax over the image's proposals.

    Source: Mask-free OVIS, W_C = σ(W^cls) ⊙ σ(W^det). It prints the same σ twice; the two
    directions are those of WSDDN.
    """
    return class_logits.softmax(1) * detection_logits.softmax(0)


def consensus(scores: Array, overlaps: Array, neighbour_iou: float, power: float) -> Array:
    """Return agreed scores (R, C): Σ_j IoU_ij · s_j^power over proposals j near proposal i.

    Args:
        scores: of one image, (R, C) >= 0.
        overlaps: IoU of its proposals, (R, R).
        neighbour_iou: proposals that overlap less do not count; with 1 no other proposal counts.
        power: if below 1, it flattens the scores before they are added.
    """
    if neighbour_iou == 1:  # a product could round: with TF32, close scores would tie
        return scores**power
    return (overlaps * (overlaps >= neighbour_iou)) @ scores**power
