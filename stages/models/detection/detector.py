"""The interface of a detector, whatever its architecture.

An architecture is a package of stages.models.architectures, with a `Network(Detector)` in its
module `network` and a `NetworkParams` in its module `params`. Only the chosen one is imported, by
its name: detectron2 need not be installed, and in dvc.yaml stages depend on that package alone. No
code outside the package names its classes.

Images are uint8 RGB (H, W, 3) of any size; as tensors they are float (3, H, W) in [0, 1]. Boxes are
xyxy in pixels of the given image. Class index k is row k of the text embeddings, which have the
order of `read_categories`, base and novel classes together.

The targets of an image are a dict:

- "boxes": float (n, 4) xyxy.
- "labels": int64 (n,), 1-based positions in the vocabulary that is trained. Label -1 marks a box to
  ignore: what lies in it is neither positive nor negative, except of an object that it matches.
  Ignored boxes come last.
- "masks": uint8 (m, H, W), of the m boxes that are not ignored.
- "weights": float32 (n, 3), of each object's class, box and mask, where not all are 1. They
  multiply the terms of a loss, but not the number by which their sum is divided.
- "annotated": int64 (k,), the labels of the labelled classes, where not all classes are labelled.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from pydantic import ValidationError
from torch import nn
from torchvision.ops import box_area

from stages.common.runtime.devices import own_kernels
from stages.common.runtime.params import in_one_line
from stages.common.runtime.storage import read_facts, read_tensors, write_tensors
from stages.models.detection.global_batch import BatchContext, MicroBatchContext
from stages.models.detection.params import (
    PACKAGE,
    Feature,
    InferenceParams,
    NetworkParams,
    ProposalLimits,
    network_params,
)
from stages.models.detection.region_hooks import MakeRegionHead, RegionLoss, find_hook
from stages.models.detection.text_classifier import TextClassifier

DEFAULT_ARCHITECTURE = "mask_rcnn"  # of files whose header names none
PREDICTED_AT_ONCE = 16  # images
MASK_BYTES = 2**29  # of the predictions in memory, unless a single image has more
# The methods that an architecture must have for what it supports.
METHODS: dict[Feature, tuple[str, ...]] = {
    "micro_batches": ("padded_hw", "count_samples"),
    "proposals": ("propose",),
    "region_hooks": ("use_region_head",),
}
IGNORED = -1  # label of a box to ignore: regions in it are neither object nor background

Item = TypeVar("Item")
Targets = list[dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Prediction:
    """Detections in one image, best score first, in the frame of the image."""

    boxes_xyxy: Float32[np.ndarray, "n 4"]
    labels: Int64[np.ndarray, " n"]  # class indices
    scores: Float32[np.ndarray, " n"]  # in [0, 1]
    masks: Bool[np.ndarray, "n H W"]


@dataclass(frozen=True)
class LossSettings:
    """The settings of a training's losses.

    Attributes:
        vocabulary: class indices to choose from; all if None.
        background_weight: of background regions in the classification loss.
        region_losses: further losses of the sampled regions, by name.
    """

    vocabulary: Sequence[int] | None
    background_weight: float
    region_losses: Mapping[str, RegionLoss] = field(default_factory=dict)


def object_weights(target: Mapping[str, torch.Tensor]) -> Float[torch.Tensor, "n 3"]:
    """Return the class, box and mask weights of each object of an image; 1 where none are given."""
    return target.get("weights", target["boxes"].new_ones(len(target["boxes"]), 3))


def lie_in(
    boxes_xyxy: Float[torch.Tensor, "R 4"], ignored_xyxy: Float[torch.Tensor, "n 4"]
) -> Bool[torch.Tensor, " R"]:
    """Return which boxes lie in one to ignore with at least half of their area.

    Not their IoU counts: that of one object with the box around a group is small. Source: COCO's
    evaluation, which compares detections with crowds in this way.
    """
    low = torch.maximum(boxes_xyxy[:, None, :2], ignored_xyxy[:, :2])
    high = torch.minimum(boxes_xyxy[:, None, 2:], ignored_xyxy[:, 2:])
    inside = (high - low).clamp(min=0).prod(2)
    return (inside >= box_area(boxes_xyxy)[:, None] / 2).any(1)


class Detector(nn.Module, ABC):
    """A network that detects and outlines the classes of a vocabulary; `build` makes one.

    `params.supports` names what it offers beyond training and detecting:

    - "micro_batches": `losses` takes `context`, and there are `padded_hw` and `count_samples`.
    - "proposals": there is `propose`.
    - "object_weights": targets may have "weights".
    - "partial_labels": targets may have "annotated"; regions without an object are then negatives
      of these classes only.
    - "region_hooks": `losses` also returns the settings' `region_losses`, and there is
      `use_region_head`.
    """

    classifier_name: ClassVar[str]  # the submodule that is its `TextClassifier`
    architecture: str  # the name of its package; `build` sets it
    region_head: str | None = None  # the module of its region head; None for its own
    backbone: nn.Module  # maps normalised images to feature maps

    def __init__(self, params: NetworkParams) -> None:
        """Take the settings; a subclass also takes text embeddings (C, D)."""
        super().__init__()
        self.params = params

    @property
    def classifier(self) -> TextClassifier:
        """Return the classifier of regions by the texts of the classes."""
        return cast(TextClassifier, self.get_submodule(self.classifier_name))

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return next(self.parameters()).device

    @property
    def region_stage(self) -> nn.Module | None:
        """Return the stage of the backbone's trunk that runs on each region, if there is one."""
        return None

    def supports(self, feature: Feature) -> bool:
        """Return whether the architecture supports a feature."""
        return feature in self.params.supports

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """Return the parts that training may freeze, by the names of `params.parts`."""

    @abstractmethod
    def losses(
        self,
        images: list[Float[torch.Tensor, "3 _ _"]],
        targets: Targets,
        settings: LossSettings,
        context: BatchContext | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return the losses by the names of `params.losses`.

        The losses of all micro-batches add up to those of the batch.

        Args:
            images: RGB, in [0, 1] before colour jitter.
            targets: as this module describes them.
            settings: of the training.
            context: of the batch, if the images are only a part of it.
        """

    @abstractmethod
    def detect(
        self,
        images: list[Float[torch.Tensor, "3 _ _"]],
        vocabularies: Sequence[Sequence[int]],
        inference: InferenceParams,
    ) -> list[list[Prediction]]:
        """Return predictions per vocabulary and image; images are RGB in [0, 1]."""

    def use_region_head(self, make: MakeRegionHead) -> None:
        """Replace the region head by one that `make` builds; see region_hooks."""
        raise self._lacks("region_hooks")

    def padded_hw(self, images: list[torch.Tensor], context: BatchContext) -> tuple[int, int]:
        """Return the size to which these images alone are resized and padded."""
        raise self._lacks("micro_batches")

    def count_samples(
        self, images: list[torch.Tensor], targets: Targets, context: MicroBatchContext
    ) -> None:
        """Let `context` record how many samples the losses could be computed from."""
        raise self._lacks("micro_batches")

    def propose(
        self, image: Float[torch.Tensor, "3 H W"], limits: ProposalLimits
    ) -> Float[torch.Tensor, "R 4"]:
        """Return region proposals xyxy in pixels of an image, best first."""
        raise self._lacks("proposals")

    def _lacks(self, feature: Feature) -> ValueError:
        return ValueError(f"{self.architecture} does not support {feature}; choose another one")


def build(
    architecture: str,
    params: NetworkParams,
    embeddings: Float[torch.Tensor, "C D"],
    region_head: str | None = None,
) -> Detector:
    """Return a detector with fresh weights for classes with text embeddings.

    Args:
        architecture: the name of its package.
        params: the settings of its network.
        embeddings: of the classes' texts.
        region_head: a module with another region head; None keeps the architecture's own.

    Raises:
        ModuleNotFoundError: a library of the architecture is not installed.
        TypeError: the architecture lacks a method for something that it supports.
        ValueError: the module has no region head, or the architecture does not support another one.
    """
    network = _network_class(architecture)
    lacking = [
        f"{feature} needs {name}"
        for feature in sorted(params.supports & METHODS.keys())
        for name in METHODS[feature]
        if getattr(network, name) is getattr(Detector, name)
    ]
    if lacking:
        raise TypeError(f"{architecture}: lacks methods for what it supports: {', '.join(lacking)}")
    model = network(params, embeddings)
    model.architecture, model.region_head = architecture, region_head
    if region_head is not None:
        model.use_region_head(find_hook(region_head, "region_head", "region_head"))
    return model


class NetworkClass(Protocol):
    """The class `Network` in an architecture's module: a subclass of `Detector`."""

    classifier_name: str

    def __call__(self, params: NetworkParams, embeddings: torch.Tensor) -> Detector:
        """Return a detector with fresh weights."""


def _network_class(architecture: str) -> NetworkClass:
    return import_module(f"{PACKAGE}.{architecture}.network").Network


def save(path: Path, model: Detector) -> None:
    """Write weights and text embeddings, with the architecture and its settings in the header."""
    facts: dict[str, Any] = {"network": model.params.model_dump()}
    if model.architecture != DEFAULT_ARCHITECTURE:
        facts["architecture"] = model.architecture
    if model.region_head is not None:
        facts["region_head"] = model.region_head
    write_tensors(path, model.state_dict(), facts)


def read_architecture(path: Path) -> str:
    """Return the architecture of the detector that `save` wrote, without reading its weights.

    Raises:
        ValueError: the file is not a detector.
    """
    return _architecture(path, read_facts(path))


def _architecture(path: Path, facts: Any) -> str:
    if not isinstance(facts, dict) or "network" not in facts:
        raise ValueError(f"{path}: not a detector; run `dvc repro detector` to make one")
    return facts.get("architecture", DEFAULT_ARCHITECTURE)


def load(path: Path) -> Detector:
    """Return the detector that `save` wrote, in inference mode.

    Raises:
        ModuleNotFoundError: a library of its architecture is not installed.
        ValueError: the file is not a detector, or was written by another version of this code.
    """
    tensors, facts = read_tensors(path)
    architecture = _architecture(path, facts)
    try:
        params = network_params(architecture).model_validate(facts["network"])
        embeddings = tensors[f"{_network_class(architecture).classifier_name}.embeddings"]
        model = build(architecture, params, embeddings, facts.get("region_head"))
        model.load_state_dict(tensors)
    except ValidationError as error:
        raise ValueError(
            f"{path}: written by another version of this code ({in_one_line(error)}); make it again"
        ) from None
    except (KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: weights do not fit the network of its header: {error}") from None
    return model.eval()


def to_unit_range(image: UInt8[np.ndarray, "H W 3"]) -> Float32[torch.Tensor, "3 H W"]:
    """Return an image as float32 in [0, 1], channels first."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255


def bounded_batches(
    images: Iterable[Item],
    image_hw: Callable[[Item], tuple[int, int]],
    masks_per_image: int,
    most: int,
) -> Iterator[list[Item]]:
    """Yield the images in lists of at most `most`, shorter where their masks take much memory.

    Args:
        images: in any form.
        image_hw: returns the size of one.
        masks_per_image: how many masks an image may have, a byte per pixel each.
        most: the largest length.
    """
    batch: list[Item] = []
    num_bytes = 0
    for image in images:
        own = masks_per_image * prod(image_hw(image))
        if batch and (len(batch) == most or num_bytes + own > MASK_BYTES):
            yield batch
            batch, num_bytes = [], 0
        batch.append(image)
        num_bytes += own
    if batch:
        yield batch


@torch.no_grad()
def predict(
    model: Detector,
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    vocabularies: Sequence[Sequence[int]],
    inference: InferenceParams,
) -> list[list[Prediction]]:
    """Return predictions per vocabulary and image.

    What does not depend on the vocabulary is computed once for all of them. Images of different
    sizes are not padded to a common one, for a group norm would see the padding; so nothing that is
    found in an image depends on the others.

    Args:
        model: a detector; it is put into inference mode.
        images: RGB, of any size.
        vocabularies: class indices to choose from, such as all for the generalized protocol and the
            novel ones for the constrained protocol.
        inference: which detections remain.
    """
    model.eval()
    found: list[dict[int, Prediction]] = [{} for _ in vocabularies]
    for same in _same_size(images):
        for start in range(0, len(same), PREDICTED_AT_ONCE):
            indices = same[start : start + PREDICTED_AT_ONCE]
            pixels = [to_unit_range(images[k]).to(model.device) for k in indices]
            with own_kernels():
                batches = model.detect(pixels, vocabularies, inference)
            for own, batch in zip(found, batches, strict=True):
                own.update(zip(indices, batch, strict=True))
    return [[own[k] for k in range(len(images))] for own in found]


def _same_size(images: Sequence[np.ndarray]) -> list[list[int]]:
    """Return groups of image indices, one group per size."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(image.shape, []).append(index)
    return list(groups.values())
