"""Published weights: read without running their code, loaded with every name accounted for."""

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

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


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a torch checkpoint, of its part "model" if it has one.

    Raises:
        ValueError: it is no checkpoint, or has more in it than tensors and plain values.
    """
    try:
        # Mapped, a checkpoint with its optimizer's state takes no memory for what is not used.
        mapped = zipfile.is_zipfile(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(
            f"{path}: cannot be read as torch weights: {error}. If it is whole and you trust where"
            ' it is from, save it anew with nothing but its weights: torch.save({"model": …})'
        ) from error
    state = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(torch.is_tensor(v) for v in state.values()):
        raise ValueError(f"{path}: expected a mapping of names to tensors, or one under 'model'")
    return dict(state)


def check_digest(path: Path, expected: str | None, key: str) -> None:
    """Compare a file with its SHA-256 of params.yaml, unless that is null.

    Raises:
        ValueError: they differ; the message names the file and `key`.
    """
    if expected is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected.lower():
        raise ValueError(
            f"{path}: its SHA-256 is {found}, params.yaml: {key} says {expected}; it is"
            " broken or another checkpoint"
        )
