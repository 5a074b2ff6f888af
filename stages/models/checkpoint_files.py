"""Weights that others published as torch checkpoints, read without running their code."""

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch


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
