"""Activation maps as the official code makes them: one caption at a time, everything anew.

Each (image, caption) is encoded by itself, each round runs the whole model forwards and backwards
through every weight, and each object is normalised and masked in a loop. The mathematics is that of
`stages.activation`, so the maps are equal up to rounding. Slow on purpose.

Shape legend: B images, M captions per image, L tokens, T targets, h w patches, H W pixels.
"""

import torch
from torch.nn import functional

from stages.activation.params import ActivationParams
from stages.activation.rounds import Targets
from stages.models.vision_language.base import VisionLanguageModel


def caption_activation(
    model: VisionLanguageModel, image: torch.Tensor, tokens: torch.Tensor, fusion_layer: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return φ float32 (L, h, w) of one caption (L,) and image (3, H, W), and the score ().

    Source: Mask-free OVIS eq. 1-3.
    """
    model.zero_grad()
    context = model.fusion_context(model.encode_image(image[None]))
    text = model.fusion_text(tokens[None])
    states, attentions = model.fuse(text, tokens[None], context)
    attention = attentions[fusion_layer]
    attention.retain_grad()
    score = model.matching_score(states[-1])[0]
    score.backward()
    phi = (attention * attention.grad.clamp(min=0)).detach().mean(1)[0]
    phi = phi[:, model.leading_context :]  # (L, P)
    side = round(phi.shape[1] ** 0.5)
    return phi.view(len(tokens), side, side), score.detach()


def activation_maps(
    model: VisionLanguageModel, images: torch.Tensor, targets: Targets, params: ActivationParams
) -> torch.Tensor:
    """Return the united map of every target after every round, float32 (T, G+1, h, w).

    As `stages.activation.rounds.iterate_masking` without `reach`. Square images.
    """
    maps: list[list[torch.Tensor]] = [[] for _ in targets.image]
    for row, image in enumerate(images):
        of_image = (targets.image == row).nonzero()[:, 0].tolist()
        groups = [of_image] if params.mask_scope == "image" else [[t] for t in of_image]
        for group in groups:
            for target, united in zip(
                group, _look(model, image, row, group, targets, params), strict=True
            ):
                maps[target] = united
    return torch.stack([torch.stack(united) for united in maps])


def _look(
    model: VisionLanguageModel,
    image: torch.Tensor,
    row: int,
    group: list[int],
    targets: Targets,
    params: ActivationParams,
) -> list[list[torch.Tensor]]:
    """Return the united maps of the targets that hide their evidence in the same image."""
    view, hidden = image, torch.zeros(image.shape[1:], dtype=torch.bool)
    united: list[torch.Tensor | None] = [None] * len(group)
    maps: list[list[torch.Tensor]] = [[] for _ in group]
    for _ in range(params.rounds + 1):
        found = _find(model, view, row, group, targets, params.fusion_layer)
        visible = torch.ones(found[0].shape)
        if params.weigh_visible:
            visible -= functional.adaptive_avg_pool2d(hidden[None].float(), found[0].shape)[0]
        for place, one in enumerate(found):
            if united[place] is None:
                united[place] = one
            elif params.union == "sum":
                united[place] = united[place] + one * visible
            else:
                united[place] = torch.maximum(united[place], one * visible)
            maps[place].append(_stretch(united[place]))
        evidence = _stretch(sum(found))
        pixels = functional.interpolate(
            evidence[None, None], view.shape[1:], mode="bilinear", align_corners=False
        )[0, 0]
        hidden = hidden | (pixels > params.mask_threshold)
        view = torch.where(hidden, view.mean(), view)
    return maps


def _find(
    model: VisionLanguageModel,
    view: torch.Tensor,
    row: int,
    group: list[int],
    targets: Targets,
    fusion_layer: int,
) -> list[torch.Tensor]:
    """Return the normalised map (h, w) of each target in one view, summed over its words."""
    sums: list[torch.Tensor | float] = [0.0] * len(group)
    for column, tokens in enumerate(targets.tokens[row]):
        phi, _ = caption_activation(model, view, tokens, fusion_layer)
        for place, target in enumerate(group):
            for position, weight in enumerate(targets.weights[target, column].tolist()):
                if weight:
                    sums[place] = sums[place] + weight * phi[position]
    return [_stretch(one) for one in sums]


def _stretch(one: torch.Tensor) -> torch.Tensor:
    low, high = one.min(), one.max()
    return (one - low) / (high - low) if high > low else torch.zeros_like(one)
