"""Predictions of FCOS-MO at every location: class features, box edges and centerness.

Shape legend: N images, L locations of all levels, F features of a location, V classes of a
vocabulary, D channels of a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Float, Float32, Int
from torch import nn
from torchvision.ops import sigmoid_focal_loss

from stages.models.architectures.fcos_mo.params import FocalParams
from stages.models.detection.hourglass_head import conv_norm_relu
from stages.models.detection.text_classifier import TextClassifier

LONGEST_EXPONENT = 8.0  # e^8 is 3000 strides; keeps the first steps finite


@dataclass(frozen=True)
class DensePredictions:
    """The predictions of the head for N images."""

    features: Float[torch.Tensor, "N L F"]  # for the classifier
    distances: Float32[torch.Tensor, "N L 4"]  # pixels, > 0
    centerness_logits: Float32[torch.Tensor, "N L"]


class SigmoidClassifier(nn.Module):
    """Classifies each class of a vocabulary against the background, by its text alone.

    The poster says only "CLIP-based open-vocabulary classifier". Ours: the logit of a class is its
    similarity, minus the background's (0 where that is the zero vector), plus a learned bias that
    all classes share. The bias starts at the prior of the focal loss, and classes that are never
    trained have it too. Probabilities start near the prior only if the similarities start small:
    dot products do, a cosine divided by a temperature does not.
    """

    def __init__(self, texts: TextClassifier, prior: float) -> None:
        super().__init__()
        self.texts = texts
        self.bias = nn.Parameter(torch.tensor(-log((1 - prior) / prior)))

    def forward(
        self, features: Float[torch.Tensor, "N L F"], vocabulary: Sequence[int] | None
    ) -> Float32[torch.Tensor, "N L _"]:
        """Return logits (N, L, V)."""
        similar = self.texts(features.flatten(0, 1), vocabulary)
        return (similar[:, 1:] - similar[:, :1] + self.bias).unflatten(0, features.shape[:2])


class DenseHead(nn.Module):
    """Two towers shared by all levels; box and centerness are class-agnostic.

    Source: FCOS, section 3 and figure 2, with centerness on the box tower. Distances are
    exponentials, as in its first version: a ReLU would have no gradient for negative inputs.
    """

    def __init__(self, width: int, layers: int, strides: Sequence[int]) -> None:
        """Take levels of `width` channels, one per stride."""
        super().__init__()
        self.strides = strides
        self.class_tower, self.box_tower = (
            nn.Sequential(*[conv_norm_relu(width, width) for _ in range(layers)]) for _ in range(2)
        )
        self.edges, self.centerness = nn.Conv2d(width, 4, 3, 1, 1), nn.Conv2d(width, 1, 3, 1, 1)
        self.scales = nn.Parameter(torch.ones(len(strides)))
        for module in (self.edges, self.centerness):
            nn.init.normal_(module.weight, std=0.01)
            assert module.bias is not None
            nn.init.zeros_(module.bias)

    def forward(self, levels: Sequence[Float[torch.Tensor, "N D _ _"]]) -> DensePredictions:
        """Return the predictions at all locations of the levels, one level per stride."""
        features, distances, centerness_logits = [], [], []
        for level, stride, scale in zip(levels, self.strides, self.scales, strict=True):
            features.append(_rows(self.class_tower(level)))
            shape = self.box_tower(level)
            exponents = (scale * _rows(self.edges(shape)).float()).clamp(max=LONGEST_EXPONENT)
            distances.append(stride * exponents.exp())
            centerness_logits.append(_rows(self.centerness(shape)).float()[..., 0])
        per_level = features, distances, centerness_logits
        return DensePredictions(*(torch.cat(rows, dim=1) for rows in per_level))

    def box_part(self) -> nn.Module:
        """Return all modules that predict boxes and centerness."""
        return nn.ModuleList(
            [self.box_tower, self.edges, self.centerness, nn.ParameterList([self.scales])]
        )


def _rows(level: torch.Tensor) -> torch.Tensor:
    return level.flatten(2).transpose(1, 2)


def focal_terms(
    logits: Float[torch.Tensor, "L V"],
    labels: Int[torch.Tensor, " L"],
    focal: FocalParams,
    annotated: Int[torch.Tensor, " k"] | None = None,
) -> Float[torch.Tensor, " L"]:
    """Return the focal loss of each location, summed over classes.

    Args:
        logits: of the vocabulary's classes.
        labels: 0 for background, else 1-based positions in the vocabulary.
        focal: alpha and gamma. Source: Focal Loss for Dense Object Detection, eq. 5.
        annotated: the labels that were looked for in the image; all if None. A location without a
            label is a negative of these only. One with a label is a negative of all other classes,
            because an object has one class.
    """
    goals = torch.zeros_like(logits)
    positive = torch.where(labels > 0)[0]
    goals[positive, labels[positive] - 1] = 1
    terms = sigmoid_focal_loss(logits, goals, focal.alpha, focal.gamma)
    if annotated is not None:
        known = (labels > 0)[:, None].expand_as(goals).clone()
        known[:, annotated - 1] = True
        terms = terms * known
    return terms.sum(1)
