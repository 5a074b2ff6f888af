"""Optimizers of every training, and the learning rate of each of their steps.

A schedule maps a 0-based step to a rate; a parameter's is that times the `factor` of its group.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

import torch
from torch import nn

Schedule = Callable[[int], float]


def make_optimizer(
    model: nn.Module,
    weight_decay: float,
    momentum: float | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    vector_factor: float = 1.0,
    decay_vectors: bool = False,
) -> torch.optim.Optimizer:
    """Return the optimizer of what is to be trained: AdamW with `betas`, or SGD with a `momentum`.

    Args:
        model: what to train.
        weight_decay: of matrices.
        momentum: of SGD; AdamW if None.
        betas: of AdamW.
        vector_factor: of the rate of vectors (biases, norms).
        decay_vectors: treat vectors as matrices.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": trained, "factor": 1.0}]
    if not decay_vectors:
        vectors = [p for p in trained if p.ndim <= 1]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "factor": 1.0},
            {"params": vectors, "factor": vector_factor, "weight_decay": 0.0},
        ]
    if momentum is not None:
        return torch.optim.SGD(groups, momentum=momentum, weight_decay=weight_decay)
    return torch.optim.AdamW(groups, weight_decay=weight_decay, betas=betas)


def cosine(rate: float, steps: int, warmup_steps: int = 0, last: float = 0.0) -> Schedule:
    """Return half a cosine from `rate` to `last` of it, after a linear warm-up from 0.

    The last step of the warm-up has the whole rate.
    """

    def at(step: int) -> float:
        warmup = min(1.0, (step + 1) / max(warmup_steps, 1))
        falling = 0.5 * (1 + math.cos(math.pi * step / steps))
        return rate * warmup * (last + (1 - last) * falling)

    return at


def step_decay(
    rate: float, at_steps: Sequence[int], factor: float, warmup_steps: int, warmup_from: float
) -> Schedule:
    """Return Detectron's schedule: `rate` times `factor` from each of the steps on.

    A linear warm-up begins at `warmup_from` of the rate, and the first step after it has the whole.
    """

    def at(step: int) -> float:
        warmed = min(1.0, step / warmup_steps) if warmup_steps else 1.0
        warmup = warmup_from * (1 - warmed) + warmed
        return rate * warmup * factor ** bisect_right(at_steps, step)

    return at


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let the optimizer's next step be at a rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["factor"] * rate


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: torch.Tensor,
    rate: float,
    largest_gradient: float,
) -> None:
    """Take one step down the gradient of a loss, whose norm is limited."""
    set_rate(optimizer, rate)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), largest_gradient)
    optimizer.step()
