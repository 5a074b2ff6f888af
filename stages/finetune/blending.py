"""Blend the weights before and after fine-tuning, so that less is forgotten.

A straight line between the two models keeps most of what fine-tuning gained on the base classes and
of what the novel classes had. Source: Robust fine-tuning of zero-shot models (WiSE-FT), eq. 1; not
in Mask-free OVIS.
"""

import torch
from torch import nn


@torch.no_grad()
def blend(model: nn.Module, start: dict[str, torch.Tensor], share: float) -> None:
    """Set each weight and batch statistic to `share` of `start` and the rest of its own.

    Args:
        model: the fine-tuned model, changed in place.
        start: state of the same model before.
        share: in [0, 1]; 0 leaves the model as it is.
    """
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.lerp_(start[name].to(value), share)
