"""Published weights: read without running code, and loaded only if every name fits."""

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn


def load_exactly(model: nn.Module, weights: Mapping[str, torch.Tensor], origin: object) -> None:
    """Load `weights` into `model`; a model on the meta device takes the tensors themselves.

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
    """Return the tensors of a torch checkpoint, or of its entry "model" if it has one.

    Raises:
        ValueError: the file is not a checkpoint, or holds more than tensors and plain values.
    """
    try:
        # Memory-mapped, so that the unused state of an optimizer takes no memory.
        mapped = zipfile.is_zipfile(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(
            f"{path}: cannot be read as torch weights: {error}. If it is complete and you trust its"
            ' source, save it again with its weights alone: torch.save({"model": …})'
        ) from error
    state = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(torch.is_tensor(v) for v in state.values()):
        raise ValueError(f"{path}: expected a mapping of names to tensors, or one under 'model'")
    return dict(state)


def check_digest(path: Path, expected: str | None, key: str) -> None:
    """Compare a file's SHA-256 with that in params.yaml; None skips the check.

    Raises:
        ValueError: they differ; the message names the file and `key`.
    """
    if expected is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected.lower():
        raise ValueError(
            f"{path}: its SHA-256 is {found}, params.yaml: {key} says {expected}; the"
            " file is broken or another checkpoint"
        )
