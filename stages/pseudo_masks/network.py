"""The weakly supervised segmentation network: a three-layer CNN per object, trained on that object.

Its convolutions are 3 × 3, 3 × 3 and 1 × 1. K networks, each with its own weights, run at once: a
convolution is a batched matrix product of unfolded patches, so that no object pays the overhead of
its own kernel launches.

Shape legend: K objects, C input channels, F hidden channels, S pixels per side.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import nn
from torch.nn import functional

from stages.models.solver import make_optimizer, set_rate


def init_weights(
    objects: int, inputs: int, channels: int, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Return the initial weights of K networks (He et al.), the same draw for all of them.

    One draw for all makes an object's mask independent of the batch that it is trained in.
    """
    device = generator.device

    def draw(outputs: int, fan_in: int) -> torch.Tensor:
        weights = torch.randn(1, outputs, fan_in, generator=generator, device=device)
        return (weights * (2 / fan_in) ** 0.5).repeat(objects, 1, 1)

    return {
        "weight1": draw(channels, inputs * 9),
        "bias1": torch.zeros(objects, channels, 1, device=device),
        "weight2": draw(channels, channels * 9),
        "bias2": torch.zeros(objects, channels, 1, device=device),
        "weight3": draw(1, channels),
        "bias3": torch.zeros(objects, 1, 1, device=device),
    }


def forward(
    weights: Mapping[str, torch.Tensor], columns: Float[torch.Tensor, "K _ _"], size: int
) -> Float[torch.Tensor, "K {size} {size}"]:
    """Return object logits of unfolded inputs (K, C·9, S·S)."""
    first = functional.relu(torch.baddbmm(weights["bias1"], weights["weight1"], columns))
    unfolded = functional.unfold(first.unflatten(2, (size, size)), 3, padding=1)
    second = functional.relu(torch.baddbmm(weights["bias2"], weights["weight2"], unfolded))
    logits = torch.baddbmm(weights["bias3"], weights["weight3"], second)
    return logits.view(len(logits), size, size)


def seed_loss(
    logits: Float[torch.Tensor, "K S S"],
    foreground: Bool[torch.Tensor, "K S S"],
    background: Bool[torch.Tensor, "K S S"],
    inside: Bool[torch.Tensor, "S S"],
    self_training: float,
) -> Float[torch.Tensor, " K"]:
    """Return the loss of each object: the cross-entropies of object and background pixels.

    Object and background weigh the same. Background inside the box and background around it weigh
    half each if there are both; with `context: 0` there is none around it. `self_training` weighs a
    third term, the cross-entropy of the unlabelled pixels in the box with their own prediction, as
    in the official code.

    Source: Mask-free OVIS, pseudo mask generation, L_wss. Means replace the paper's sums, so that
    the numbers of labelled pixels do not weigh the terms.
    """
    object_loss = _mean(functional.softplus(-logits), foreground)
    rest = functional.softplus(logits)
    parts = [background & inside, background & ~inside]
    there = torch.stack([part.any(2).any(1) for part in parts]).sum(0)
    loss = object_loss + sum(_mean(rest, part) for part in parts) / there.clamp(min=1)
    if self_training > 0:
        unlabelled = inside & ~foreground & ~background
        loss = loss + self_training * _mean(functional.softplus(-logits.abs()), unlabelled)
    return loss


def _mean(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    return (values * where).sum((1, 2)) / where.sum((1, 2)).clamp(min=1)


def train_networks(
    inputs: Float[torch.Tensor, "K C S S"],
    foreground: Bool[torch.Tensor, "K S S"],
    background: Bool[torch.Tensor, "K S S"],
    inside: Bool[torch.Tensor, "S S"],
    channels: int,
    steps: int,
    learning_rate: float,
    self_training: float,
    generator: torch.Generator,
) -> Float[torch.Tensor, "K S S"]:
    """Train K networks and return their object logits after the last step.

    The optimizer is AdamW without decay, which is Adam.

    Args:
        inputs: crops, from `network_input`.
        foreground: pixels labelled as object.
        background: pixels labelled as background.
        inside: pixels of the box.
        channels: F.
        steps: number of optimizer steps.
        learning_rate: of all steps.
        self_training: weight of the third term of `seed_loss`.
        generator: draws the initial weights.
    """
    size = inputs.shape[-1]
    columns = functional.unfold(inputs, 3, padding=1)
    start = init_weights(len(inputs), inputs.shape[1], channels, generator)
    weights = {name: nn.Parameter(drawn.to(inputs.device)) for name, drawn in start.items()}
    optimizer = make_optimizer(nn.ParameterDict(weights), weight_decay=0.0)
    set_rate(optimizer, learning_rate)
    for _ in range(steps):
        loss = seed_loss(
            forward(weights, columns, size), foreground, background, inside, self_training
        )
        optimizer.zero_grad()
        # Networks are independent: each gets its own gradient, so no common norm may clip them.
        loss.sum().backward()
        optimizer.step()
    with torch.no_grad():
        return forward(weights, columns, size)
