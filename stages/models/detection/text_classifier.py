"""Classifier of regions by their similarity to fixed text embeddings of the class names.

Shape legend: R regions, F features of a region, D embedding width, C classes, V classes of a
vocabulary.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Float32, Int
from torch import nn
from torch.nn import functional


class TextClassifier(nn.Module):
    """A learned projection into the text space; the classes themselves are not learned.

    Source: Mask-free OVIS §3.4; the official code's `emb_pred`.
    """

    def __init__(
        self,
        features: int,
        embeddings: Float[torch.Tensor, "C D"],
        similarity: Literal["dot", "cosine"],
        temperature: float,
        background: Literal["zero", "learned"],
    ) -> None:
        """Classify into the rows of `embeddings`, which may have any norm.

        `similarity` is divided by `temperature`. The background's logit is 0 (`zero`, as in the
        official code, whose background embedding is the zero vector) or the similarity to a learned
        vector.
        """
        super().__init__()
        self.register_buffer("embeddings", None)
        self.projection = nn.Linear(features, embeddings.shape[1])
        nn.init.normal_(self.projection.weight, std=0.01)
        nn.init.zeros_(self.projection.bias)
        self.cosine, self.temperature = similarity == "cosine", temperature
        self.background = None
        if background == "learned":
            self.background = nn.Parameter(
                functional.normalize(torch.randn(embeddings.shape[1]), dim=0)
            )
        self.begin_with(embeddings)

    def begin_with(self, embeddings: Float[torch.Tensor, "C D"]) -> None:
        """Set the text embeddings to train with.

        With `dot`, where norms matter, a learned background starts with their mean norm.
        """
        self.embeddings = embeddings.clone()
        if self.background is not None and not self.cosine:
            length = embeddings.norm(dim=1).mean()
            self.background.data = functional.normalize(self.background.data, dim=0) * length

    def forward(
        self, features: Float[torch.Tensor, "R F"], vocabulary: Sequence[int] | None = None
    ) -> Float32[torch.Tensor, "R _"]:
        """Return logits (R, 1 + V), background first.

        `vocabulary` lists the class indices to choose from, all C if None. Classes left out take no
        part in the softmax.
        """
        projected = self.projection(features)
        targets = self.embeddings if vocabulary is None else self.embeddings[list(vocabulary)]
        # float32 also under autocast: a similarity divided by 0.07 needs more than 8 bits.
        with torch.autocast(features.device.type, enabled=False):
            return self._similarity(projected.float(), targets)

    def _similarity(self, projected: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        background = torch.zeros_like(targets[0]) if self.background is None else self.background
        targets = torch.cat([background[None], targets])
        if self.cosine:
            # The zero background keeps its logit 0: normalize leaves a zero vector as it is.
            projected, targets = (functional.normalize(x, dim=1) for x in (projected, targets))
        return projected @ targets.T / self.temperature


def classification_loss(
    logits: Float[torch.Tensor, "R _"],
    labels: Int[torch.Tensor, " R"],
    background_weight: float,
    weights: Float[torch.Tensor, " R"] | None = None,
) -> Float[torch.Tensor, ""]:
    """Return the cross-entropy of logits (R, 1 + V) with labels, of which 0 is background.

    It is a weighted mean: background has weight `background_weight` (official code 0.2), a class 1.
    `weights` multiply the terms, but not the number by which their sum is divided. The loss of no
    regions is 0.
    """
    if not len(labels):
        return logits.sum() * 0
    weight = logits.new_ones(logits.shape[1])
    weight[0] = background_weight
    if weights is None:
        return functional.cross_entropy(logits, labels, weight)
    terms = functional.cross_entropy(logits, labels, weight, reduction="none")
    return (terms * weights).sum() / weight[labels].sum()
