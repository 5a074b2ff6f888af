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
from typing import Any

import torch
from jaxtyping import Float, Float32, Int
from torch import nn

from stages.common.runtime.params import PARAMS_FILE
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


def check_hooks(params: Any, section: str) -> None:
    """Check that all functions exist whose modules a section of params.yaml names.

    Args:
        params: of a stage that trains a detector.
        section: their section.

    Raises:
        ValueError: one does not; the message names the key.
    """
    find_region_losses(params.training.region_losses, section)
    if (module := getattr(params, "region_head", None)) is not None:
        find_hook(module, "region_head", f"{PARAMS_FILE}: {section}.region_head")


def find_region_losses(params: Iterable[RegionLossParams], section: str) -> dict[str, RegionLoss]:
    """Return the further losses of a section's training by name; raises as `find_hook` does."""
    key = f"{PARAMS_FILE}: {section}.training.region_losses"
    return {
        loss.name: find_hook(loss.module, "region_loss", f"{key}.{place}.module")
        for place, loss in enumerate(params)
    }


def find_hook(module: str, function: str, named_in: str) -> Callable:
    """Return a function of a module; `named_in` is the file and key that name the module.

    Raises:
        ValueError: there is no such module, or the module has no such function.
    """
    try:
        found = getattr(import_module(module), function, None)
    except (ModuleNotFoundError, TypeError, ValueError) as error:  # the last two: '.x' and ''
        raise ValueError(
            f"{named_in}: cannot import {module!r}: {error}; name a module with a function"
            f" {function}, such as comparators.<method>.<file>"
        ) from None
    if not callable(found):
        raise ValueError(
            f"{named_in}: {module!r} has no function {function}; add it, or name another module"
        )
    return found


def hook_files(modules: Iterable[str]) -> list[Path]:
    """Return the files of modules that params.yaml names, for a training's fingerprint."""
    return [Path(getfile(import_module(module))) for module in modules]
