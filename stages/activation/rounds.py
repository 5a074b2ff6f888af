"""Iterative masking: hide what was activated, look again, and unite what the rounds have found.

Shape legend: B images, M captions per image, L tokens, T targets (image, class) of the batch,
h w patches, H W pixels, G rounds after the first.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int
from torch.nn import functional

from stages.activation.gradcam import normalise_maps, token_activation
from stages.activation.params import ActivationParams
from stages.models.vision_language.base import VisionLanguageModel


@dataclass(frozen=True)
class Targets:
    """The objects that captions name in a batch of images.

    Attributes:
        tokens: token ids of all captions.
        image: the row in the batch of each target.
        weights: 1 at the tokens that name the target.
    """

    tokens: Int[torch.Tensor, "B M L"]
    image: Int[torch.Tensor, " T"]
    weights: Float[torch.Tensor, "T M L"]

    def to(self, device: torch.device) -> "Targets":
        """Return the same on `device`."""
        return Targets(*(part.to(device) for part in (self.tokens, self.image, self.weights)))


def iterate_masking(
    model: VisionLanguageModel,
    images: Float[torch.Tensor, "B 3 H W"],
    targets: Targets,
    params: ActivationParams,
) -> tuple[Float32[torch.Tensor, "T G h w"], Float32[torch.Tensor, "T G"]]:
    """Return the united map after every round, and the matching score of every round.

    With `mask_scope: object` each target hides its own evidence on its own copy of the image
    (the paper's per-object t); with `image` all targets of an image hide theirs together (the
    official code). Hidden pixels take the image's mean, and stay hidden. Two weights of later
    rounds are ours. With `weigh_visible` a cell counts by the fraction of it that is still visible:
    the model sees nothing of the object in a hidden place. With `reach` > 0 it counts the less the
    farther it is from the first round's finding: when the object is all hidden, attention, whose
    sum is always 1, goes elsewhere.

    Returns:
        maps in [0, 1]: entry g of G+1 is the union of rounds 0…g; and the matching logit, the mean
        over the captions that name the target.

    Source: Mask-free OVIS eq. 4.
    """
    own_copy = params.mask_scope == "object" and params.rounds > 0
    views, tokens, rows = images, targets.tokens, targets.image
    united: torch.Tensor | None = None
    maps, scores = [], []
    hidden = torch.zeros(len(views), 1, *images.shape[2:], dtype=torch.bool, device=images.device)
    for round_index in range(params.rounds + 1):
        phi, score = token_activation(model, views, tokens, params.fusion_layer)
        found = normalise_maps((phi[rows] * targets.weights[..., None, None]).sum((1, 2)))
        if united is None:
            united, near = found, _nearness(found, params.reach)
        else:
            weights = near
            if params.weigh_visible:
                weights = near * _visible(hidden[rows], found.shape[1:])
            united = _unite(united, found * weights, params)
        maps.append(normalise_maps(united))
        named = targets.weights.amax(2)
        scores.append((score[rows] * named).sum(1) / named.sum(1))
        if round_index == params.rounds:
            break
        if own_copy and round_index == 0:
            views, tokens, hidden = views[rows], tokens[rows], hidden[rows]
            rows = torch.arange(len(rows), device=rows.device)
        hidden = hidden | _activated(found, rows, len(views), images.shape[2:], params)
        mean = views.mean((1, 2, 3), keepdim=True)
        views = torch.where(hidden, mean, views)
    return torch.stack(maps, 1), torch.stack(scores, 1)


def _visible(hidden: torch.Tensor, cells_hw: torch.Size) -> torch.Tensor:
    """Return the visible fraction of each cell, (T, h, w), of masks bool (T, 1, H, W)."""
    rows, columns = cells_hw
    return 1 - functional.adaptive_avg_pool2d(hidden.float(), (rows, columns))[:, 0]


def _nearness(found: torch.Tensor, reach: float) -> torch.Tensor:
    """Return weights (T, h, w) in [0, 1]: the map blurred by `reach` cells; 1 if reach is 0."""
    if reach == 0:
        return torch.ones_like(found)
    offsets = torch.arange(-round(4 * reach), round(4 * reach) + 1, device=found.device)
    kernel = torch.exp(-0.5 * (offsets / reach) ** 2)
    kernel = kernel / kernel.sum()
    maps, margin = found[:, None], len(offsets) // 2
    maps = functional.conv2d(maps, kernel.view(1, 1, 1, -1), padding=(0, margin))
    return normalise_maps(functional.conv2d(maps, kernel.view(1, 1, -1, 1), padding=(margin, 0)))[
        :, 0
    ]


def _unite(united: torch.Tensor, found: torch.Tensor, params: ActivationParams) -> torch.Tensor:
    return united + found if params.union == "sum" else torch.maximum(united, found)


def _activated(
    found: torch.Tensor,
    rows: torch.Tensor,
    num_views: int,
    image_hw: torch.Size,
    params: ActivationParams,
) -> torch.Tensor:
    """Return which pixels of the views to hide, bool (views, 1, H, W)."""
    evidence = found.new_zeros(num_views, *found.shape[1:]).index_add_(0, rows, found)
    pixels = functional.interpolate(
        normalise_maps(evidence)[:, None], tuple(image_hw), mode="bilinear", align_corners=False
    )
    return pixels > params.mask_threshold
