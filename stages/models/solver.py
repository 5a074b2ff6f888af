"""Optimizers and learning-rate schedules of every training.

A schedule maps a 0-based step to a learning rate. Each parameter group multiplies it by its own
`factor`.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
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
    """Return an optimizer of the trainable parameters: SGD with `momentum`, or AdamW with `betas`.

    Args:
        model: the network to train.
        weight_decay: of matrices; vectors have none.
        momentum: of SGD; None selects AdamW.
        betas: of AdamW.
        vector_factor: multiplies the learning rate of vectors (biases, norms).
        decay_vectors: treat vectors as matrices, in rate and decay.
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
    """Return half a cosine over all `steps`, from `rate` to `last` times `rate`.

    In the first `warmup_steps` the rate is also multiplied by a factor that rises linearly to 1,
    which the last of them has.
    """

    def at(step: int) -> float:
        warmup = min(1.0, (step + 1) / max(warmup_steps, 1))
        falling = 0.5 * (1 + math.cos(math.pi * step / steps))
        return rate * warmup * (last + (1 - last) * falling)

    return at


def step_decay(
    rate: float, at_steps: Sequence[int], factor: float, warmup_steps: int, warmup_from: float
) -> Schedule:
    """Return Detectron's schedule: `rate`, multiplied by `factor` at each step in `at_steps`.

    The rate rises linearly from `warmup_from` times `rate`; the first step after the warm-up has
    all of it.
    """

    def at(step: int) -> float:
        warmed = min(1.0, step / warmup_steps) if warmup_steps else 1.0
        warmup = warmup_from * (1 - warmed) + warmed
        return rate * warmup * factor ** bisect_right(at_steps, step)

    return at


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the optimizer's next step."""
    for group in optimizer.param_groups:
        group["lr"] = group["factor"] * rate


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Float[torch.Tensor, ""],
    rate: float,
    largest_gradient: float,
) -> None:
    """Take one optimizer step on `loss`, after clipping the norm of its gradient."""
    set_rate(optimizer, rate)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), largest_gradient)
    optimizer.step()
