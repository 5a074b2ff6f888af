"""Load weights by name with every name accounted for."""

from collections.abc import Mapping

import torch
from torch import nn


def load_exactly(model: nn.Module, weights: Mapping[str, torch.Tensor], origin: object) -> None:
    """Put `weights` into `model`; a model on the meta device takes the tensors themselves.

    Raises:
        ValueError: a weight is missing, left over or of another shape; the message begins with
            `origin` and lists all of them.
    """
    wanted = model.state_dict()
    faults = {
        "missing weights": sorted(wanted.keys() - weights.keys()),
        "unexpected weights": sorted(weights.keys() - wanted.keys()),
        "weights of another shape": [
            f"{name} {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in weights and weights[name].shape != tensor.shape
        ],
    }
    if any(faults.values()):
        told = "; ".join(f"{what}: {', '.join(names)}" for what, names in faults.items() if names)
        raise ValueError(f"{origin}: {told}")
    on_meta = any(tensor.is_meta for tensor in wanted.values())
    model.load_state_dict(weights, assign=on_meta)
