"""The detector behind one interface, whatever its architecture.

An architecture is a package of stages.models.architectures, with a `Network(Detector)` in its
module `network` and a `NetworkParams` in its module `params`. It is imported by name, and only the
one that is asked for: detectron2 need not be installed, and in dvc.yaml stages depend on the chosen
architecture's package. Nobody outside that package names its classes.

Images are uint8 RGB (H, W, 3) of any size; as tensors float (3, H, W) in [0, 1]. Boxes are corners
in pixels of the image given. Class index k is row k of the text embeddings: `read_categories` of
base and novel classes.

Targets of an image: "boxes" float (n, 4) xyxy, "labels" int64 (n,), "masks" uint8 (m, H, W).
Labels are 1-based positions in the vocabulary that is trained. Label -1 marks a box to ignore:
regions that overlap it are neither positive nor negative. Ignored boxes come last and have no mask.
Where objects do not all teach the same, there are "weights" float32 (n, 3) of their class, box and
mask. They weigh the terms of a loss, which is divided by as much as without them. Where only some
classes are labelled, "annotated" int64 (k,) has their labels.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import nn

from stages.common.runtime.devices import own_kernels
from stages.common.runtime.storage import read_tensors, write_tensors
from stages.models.detection.global_batch import BatchRng, MicroBatchRng
from stages.models.detection.params import PACKAGE, Feature, NetworkParams, network_params
from stages.models.detection.region_hooks import MakeRegionHead, RegionLoss, find_hook
from stages.models.detection.text_classifier import TextClassifier

DEFAULT_ARCHITECTURE = "mask_rcnn"  # of weights whose header names none
PREDICTED_AT_ONCE = 16  # images; changes no result where all have one size
# What an architecture has to have for what its `supports` says.
METHODS: dict[Feature, tuple[str, ...]] = {
    "micro_batches": ("padded_hw", "count_samples"),
    "proposals": ("propose",),
    "region_hooks": ("use_region_head",),
}
IGNORED = -1  # label of a box whose overlap is neither object nor background

Targets = list[dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Prediction:
    """Detections of one image, best score first."""

    boxes_xyxy: Float32[np.ndarray, "n 4"]
    labels: Int64[np.ndarray, " n"]  # class indices
    scores: Float32[np.ndarray, " n"]  # in [0, 1]
    masks: Bool[np.ndarray, "n H W"]


@dataclass(frozen=True)
class LossSettings:
    """What the losses of a training are computed by.

    Attributes:
        vocabulary: class indices that the softmax runs over; all if None.
        background_weight: of background regions in the classification loss.
        region_losses: of the sampled regions, beside the architecture's own losses, by name.
    """

    vocabulary: Sequence[int] | None
    background_weight: float
    region_losses: Mapping[str, RegionLoss] = field(default_factory=dict)


class Detector(nn.Module, ABC):
    """A network that finds and outlines the classes of a vocabulary; `build` makes one.

    What it can be asked for beyond this is in `params.supports`. "micro_batches": `losses` takes
    `rng`, and there are `padded_hw` and `count_samples`. "proposals": there is `propose`.
    "object_weights": targets may have "weights". "partial_labels": they may have "annotated", and
    no region is a negative of another class. "region_hooks": `losses` also returns the
    settings' `region_losses`, and there is `use_region_head`.
    """

    classifier_name: ClassVar[str]  # the submodule that is its `TextClassifier`
    architecture: str  # its package; `build` sets it
    region_head: str | None = None  # the module of its region head, unless that is its own
    backbone: nn.Module  # maps normalised images to feature maps

    def __init__(self, params: NetworkParams) -> None:
        """Take the settings; a subclass also takes text embeddings (C, D)."""
        super().__init__()
        self.params = params

    @property
    def classifier(self) -> TextClassifier:
        """Return what tells regions apart by the texts of their classes."""
        return cast(TextClassifier, self.get_submodule(self.classifier_name))

    @property
    def device(self) -> torch.device:
        """Return where its weights are."""
        return next(self.parameters()).device

    @property
    def region_stage(self) -> nn.Module | None:
        """Return the stage of the backbone's trunk that sees each region by itself, if any does."""
        return None

    def supports(self, feature: Feature) -> bool:
        """Say whether it offers something beyond training and detecting."""
        return feature in self.params.supports

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """Return what training may freeze, by the names of `params.parts`."""

    @abstractmethod
    def losses(
        self,
        images: list[Float[torch.Tensor, "3 _ _"]],
        targets: Targets,
        settings: LossSettings,
        rng: BatchRng | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return the losses by the names of `params.losses`.

        Those of a micro-batch add up to those of the batch.

        Args:
            images: in [0, 1].
            targets: as this module describes them.
            settings: of the training.
            rng: what the images need to know of the others, if they are a part of a batch.
        """

    @abstractmethod
    def detect(
        self, images: list[Float[torch.Tensor, "3 _ _"]], vocabularies: Sequence[Sequence[int]]
    ) -> list[list[Prediction]]:
        """Return predictions per vocabulary and image; images are in [0, 1]."""

    def use_region_head(self, make: MakeRegionHead) -> None:
        """Replace the head that describes a region."""
        raise self._lacks("region_hooks")

    def padded_hw(self, images: list[torch.Tensor], rng: BatchRng) -> tuple[int, int]:
        """Return the size that these images alone are resized and padded to."""
        raise self._lacks("micro_batches")

    def count_samples(
        self, images: list[torch.Tensor], targets: Targets, rng: MicroBatchRng
    ) -> None:
        """Let `rng` take down what the losses could be computed from."""
        raise self._lacks("micro_batches")

    def propose(self, image: Float[torch.Tensor, "3 H W"]) -> Float[torch.Tensor, "R 4"]:
        """Return region proposals of an image, best first."""
        raise self._lacks("proposals")

    def _lacks(self, feature: Feature) -> ValueError:
        return ValueError(f"{self.architecture} does not support {feature}; take another one")


def build(
    architecture: str,
    params: NetworkParams,
    embeddings: Float[torch.Tensor, "C D"],
    region_head: str | None = None,
) -> Detector:
    """Return a detector with fresh weights for classes with text embeddings.

    Args:
        architecture: its package.
        params: its network.
        embeddings: the texts.
        region_head: the module of another region head.

    Raises:
        ModuleNotFoundError: a library of the architecture is not installed.
        TypeError: the architecture lacks a method of what it says to support.
        ValueError: there is no region head in the module.
    """
    network = _network_class(architecture)
    lacking = [
        f"{feature} needs {name}"
        for feature in sorted(params.supports & METHODS.keys())
        for name in METHODS[feature]
        if getattr(network, name) is getattr(Detector, name)
    ]
    if lacking:
        raise TypeError(f"{architecture}: supports what it has no method for: {', '.join(lacking)}")
    model = network(params, embeddings)
    model.architecture, model.region_head = architecture, region_head
    if region_head is not None:
        model.use_region_head(find_hook(region_head, "region_head"))
    return model


class NetworkClass(Protocol):
    """What an architecture's module has as `Network`: a subclass of `Detector`."""

    classifier_name: str

    def __call__(self, params: NetworkParams, embeddings: torch.Tensor) -> Detector:
        """Return a detector with fresh weights."""


def _network_class(architecture: str) -> NetworkClass:
    return import_module(f"{PACKAGE}.{architecture}.network").Network


def save(path: Path, model: Detector) -> None:
    """Write weights and text embeddings, with architecture and settings in the header."""
    facts: dict[str, Any] = {"network": model.params.model_dump()}
    if model.architecture != DEFAULT_ARCHITECTURE:
        facts["architecture"] = model.architecture
    if model.region_head is not None:
        facts["region_head"] = model.region_head
    write_tensors(path, model.state_dict(), facts)


def load(path: Path) -> Detector:
    """Return the detector that `save` wrote, in inference mode.

    Raises:
        ModuleNotFoundError: a library of its architecture is not installed.
        ValueError: the file is no detector, or one of another version of this code.
    """
    tensors, facts = read_tensors(path)
    if not isinstance(facts, dict) or "network" not in facts:
        raise ValueError(f"{path}: not a detector; run `dvc repro detector` to make one")
    architecture = facts.get("architecture", DEFAULT_ARCHITECTURE)
    try:
        params = network_params(architecture).model_validate(facts["network"])
        embeddings = tensors[f"{_network_class(architecture).classifier_name}.embeddings"]
        model = build(architecture, params, embeddings, facts.get("region_head"))
        model.load_state_dict(tensors)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: weights do not fit the network of its header: {error}") from None
    return model.eval()


def to_unit_range(image: UInt8[np.ndarray, "H W 3"]) -> Float32[torch.Tensor, "3 H W"]:
    """Return an image with channels first, in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255


@torch.no_grad()
def predict(
    model: Detector,
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    vocabularies: Sequence[Sequence[int]],
) -> list[list[Prediction]]:
    """Return predictions per vocabulary and image.

    What does not depend on the vocabulary is computed once for all of them.

    Args:
        model: a detector; is put into inference mode.
        images: of any size.
        vocabularies: class indices to choose from, e.g. all for the generalized protocol and the
            novel ones for the constrained.
    """
    model.eval()
    found: list[list[Prediction]] = [[] for _ in vocabularies]
    for start in range(0, len(images), PREDICTED_AT_ONCE):
        some = images[start : start + PREDICTED_AT_ONCE]
        pixels = [to_unit_range(image).to(model.device) for image in some]
        with own_kernels():
            batches = model.detect(pixels, vocabularies)
        for all_found, batch in zip(found, batches, strict=True):
            all_found.extend(batch)
    return found
