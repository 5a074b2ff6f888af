"""Extensions of a detector's regions by a comparator: further losses, and another region head.

Each is one function in a module that params.yaml names, so a comparator is one file and not a copy
of a detector. The stage that runs with it must have the file among its deps.

- `training.region_losses` names modules with `region_loss(regions: SampledRegions)`, which returns
  a mean over the regions.
- `detector.region_head` names a module with `region_head(channels, side, features)`, which returns
  a network from maps (R, channels, side, side) to features (R, features).

Shape legend: N images, R regions, F features of a region, V classes of the vocabulary.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from inspect import getfile
from pathlib import Path

import torch
from jaxtyping import Float, Float32, Int
from torch import nn

from stages.models.detection.params import RegionLossParams
from stages.models.detection.text_classifier import TextClassifier


@dataclass(frozen=True)
class SampledRegions:
    """The regions from which a step's losses are computed, ordered by image."""

    images: Float[torch.Tensor, "N 3 H W"]  # normalised and padded, as the network sees them
    boxes_xyxy: list[Float[torch.Tensor, "_ 4"]]  # of each image, in pixels of `images`
    labels: Int[torch.Tensor, " R"]  # 0 is background, else 1-based positions in the vocabulary
    features: Float[torch.Tensor, "R F"]  # from the region head
    logits: Float32[torch.Tensor, "R _"]  # (R, 1 + V), background first
    classifier: TextClassifier  # its `projection` maps features into the text space


RegionLoss = Callable[[SampledRegions], torch.Tensor]
MakeRegionHead = Callable[[int, int, int], nn.Module]


def region_losses(params: Iterable[RegionLossParams]) -> dict[str, RegionLoss]:
    """Return the further losses by name; raises as `find_hook` does."""
    return {own.name: find_hook(own.module, "region_loss") for own in params}


def find_hook(module: str, function: str) -> Callable:
    """Return a function of a module that params.yaml names.

    Raises:
        ValueError: there is no such module, or the module has no such function.
    """
    try:
        found = getattr(import_module(module), function, None)
    except (ModuleNotFoundError, TypeError, ValueError) as error:  # the last two: '.x' and ''
        raise ValueError(f"params.yaml: module {module!r}: {error}") from None
    if not callable(found):
        raise ValueError(f"params.yaml: module {module!r}: expected a function {function} in it")
    return found


def hook_files(modules: Iterable[str]) -> list[Path]:
    """Return the files of modules that params.yaml names, for a training's fingerprint."""
    return [Path(getfile(import_module(module))) for module in modules]
