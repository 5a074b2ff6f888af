"""Iterative masking: hide the activated pixels, compute the map again, and unite the maps.

Shape legend: B images, M captions per image, L tokens, T targets (image, class) of the batch,
h w patches, H W pixels. Round 0 sees the whole image; G masked rounds follow, so that an axis of
rounds has G + 1 entries.
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
        image: the batch row of each target's image.
        weights: 1 at the tokens that name the target, else 0.
    """

    tokens: Int[torch.Tensor, "B M L"]
    image: Int[torch.Tensor, " T"]
    weights: Float[torch.Tensor, "T M L"]

    def to(self, device: torch.device) -> "Targets":
        """Return a copy on `device`."""
        return Targets(*(part.to(device) for part in (self.tokens, self.image, self.weights)))


def iterate_masking(
    model: VisionLanguageModel,
    images: Float[torch.Tensor, "B 3 H W"],
    targets: Targets,
    params: ActivationParams,
) -> tuple[Float32[torch.Tensor, "T G h w"], Float32[torch.Tensor, "T G"]]:
    """Return the united map after every round, and the matching score of every round.

    With `mask_scope: object` each target is masked on its own copy of the image (the paper's
    Φ_t); with `image` the evidence of all targets of an image is added and masked together (the
    official code). Hidden pixels take the mean of the copy as masked so far, one value for all
    channels, and stay hidden.

    Two weights of the later rounds are ours. With `weigh_visible` a cell counts by its visible
    fraction, because hidden pixels show nothing of the object. With `reach` > 0 a cell counts less
    the farther it is from the map of round 0: once the object is hidden, the attention, which
    always sums to 1, moves elsewhere.

    Returns:
        maps (T, G + 1, h, w) in [0, 1], entry g is the union of rounds 0…g; and matching logits
        (T, G + 1), each the mean over the captions that name the target.

    Source: Mask-free OVIS eq. 4. Maps are united by their sum or maximum (`union`), and each union
    is rescaled to [0, 1]; the official code unites binary maps.
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
    """Return weights (T, h, w) in [0, 1]: the map blurred by `reach` cells; all 1 if reach is 0."""
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
    """Return the pixels to hide in each view, bool (views, 1, H, W)."""
    evidence = found.new_zeros(num_views, *found.shape[1:]).index_add_(0, rows, found)
    pixels = functional.interpolate(
        normalise_maps(evidence)[:, None], tuple(image_hw), mode="bilinear", align_corners=False
    )
    return pixels > params.mask_threshold
