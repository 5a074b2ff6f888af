"""One way of going down for both parts: AdamW, a cosine rate, clipped gradients."""

import math

import torch
from torch import nn

LARGEST_GRADIENT = 5.0  # norm


class Descent:
    """Optimiser and schedule of one training."""

    def __init__(
        self, part: nn.Module, learning_rate: float, weight_decay: float, steps: int
    ) -> None:
        self._parameters = list(part.parameters())
        self._optimizer = torch.optim.AdamW(
            self._parameters, learning_rate, weight_decay=weight_decay
        )
        self._rate, self._steps, self._done = learning_rate, steps, 0

    def step(self, loss: torch.Tensor) -> None:
        """Take one step down the gradient of `loss`."""
        rate = self._rate * 0.5 * (1 + math.cos(math.pi * self._done / self._steps))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, LARGEST_GRADIENT)
        self._optimizer.step()
        self._done += 1
