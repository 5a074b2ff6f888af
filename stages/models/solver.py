"""Optimizers of the detector, and the learning rate of each of their steps."""

import math
from bisect import bisect_right

import torch
from torch import nn

from stages.models.detection.params import StepDecayParams, TrainingParams

LAST_RATE = 0.02  # of the learning rate, at the end of the cosine


def make_optimizer(model: nn.Module, params: TrainingParams) -> torch.optim.Optimizer:
    """Return the optimizer of what is to be trained; vectors (biases, norms) do not decay.

    The rate of each group's parameters is its `factor` times that of `learning_rate`.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim > 1]
    vectors = [p for p in trained if p.ndim <= 1]
    groups = [
        {"params": matrices, "factor": 1.0},
        {"params": vectors, "factor": params.bias_rate_factor, "weight_decay": 0.0},
    ]
    rate, decay = params.learning_rate, params.weight_decay
    if params.optimizer.kind == "sgd":
        momentum = params.optimizer.momentum
        return torch.optim.SGD(groups, rate, momentum=momentum, weight_decay=decay)
    return torch.optim.AdamW(groups, rate, weight_decay=decay)


def learning_rate(params: TrainingParams, step: int) -> float:
    """Return the rate of a 0-based step, after a linear warm-up that ends with its last step.

    A cosine falls to a fiftieth. Step decay is Detectron's: the warm-up begins at a part of the
    rate, and its first step after `warmup_steps` has the whole.
    """
    schedule = params.schedule
    if isinstance(schedule, StepDecayParams):
        warmed = min(1.0, step / params.warmup_steps) if params.warmup_steps else 1.0
        warmup = schedule.warmup_from * (1 - warmed) + warmed
        return params.learning_rate * warmup * schedule.factor ** bisect_right(schedule.at, step)
    cosine = 0.5 * (1 + math.cos(math.pi * step / params.steps))
    warmup = min(1.0, (step + 1) / max(params.warmup_steps, 1))
    return params.learning_rate * warmup * (LAST_RATE + (1 - LAST_RATE) * cosine)
