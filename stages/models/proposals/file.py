"""The file of a proposal network: its weights, and in the header its kind and sizes."""

from dataclasses import asdict
from pathlib import Path

from stages.common.runtime.storage import read_tensors, write_tensors
from stages.models.backbones.weights import load_exactly
from stages.models.proposals.base import Wspn
from stages.models.proposals.imagenet import ImagenetWspn, ImagenetWspnConfig
from stages.models.proposals.language import LanguageWspn, LanguageWspnConfig


def save_wspn(path: Path, model: LanguageWspn | ImagenetWspn) -> None:
    """Write weights and sizes into one safetensors file."""
    write_tensors(path, model.state_dict(), asdict(model.config))


def load_wspn(path: Path) -> Wspn:
    """Return a proposal network of either kind in evaluation mode, on the CPU.

    Raises:
        ValueError: weights are missing, left over or of another shape; the message names them.
    """
    weights, facts = read_tensors(path)
    model: Wspn
    if "backbone" in facts:
        model = ImagenetWspn(ImagenetWspnConfig(**facts))
    else:
        model = LanguageWspn(LanguageWspnConfig(**facts))
    load_exactly(model, weights, f"{path}: not weights of this WSPN; rerun `wspn`")
    return model.eval()
