"""The proposal network on ResNet-50 or VGG16, with refinement heads, trained end to end.

The pooled features of a proposal go to W^cls and W^det, to heads that refine the class scores and
regress the box, and to a class-agnostic quality head. Source: MIST (Instance-aware,
Context-focused, and Memory-efficient WSOD) as in its code, wetectron, whose test averages heads and
views. Ours: regression is class-agnostic, because the boxes serve any class; RoIAlign replaces
RoIPool, whose gradient is not reproducible on a GPU; and the quality head is new.

Shape legend: R proposals of one image, C base classes, K >= 1 refinements, D channels, F features,
h w cells. Boxes: x0, y0, x1, y1 in pixels of the frame that each docstring names.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import nn
from torch.utils.checkpoint import checkpoint

from stages.common.runtime.devices import own_kernels, send
from stages.models.backbones.imagenet import resnet50_trunk, vgg16_trunk
from stages.models.backbones.roi_align import first_centre, pool_regions
from stages.models.proposals.base import ImageFeatures, Wspn
from stages.models.proposals.params import ViewSettings
from stages.models.proposals.views import mirror_boxes, view_input


@dataclass(frozen=True)
class ImagenetWspnConfig:
    """Sizes; `category_ids` are the labelled classes in the order of the class scores.

    `regions_at_once` bounds memory: this many proposals are pooled at a time, and only their
    features are kept for the backward pass. `dropout` is that of VGG16's two layers; ResNet-50 has
    none.
    """

    backbone: Literal["resnet50", "vgg16"]
    category_ids: list[int]
    refinements: int
    dropout: float
    regions_at_once: int


class Outputs(NamedTuple):
    """What the heads predict for the proposals of one image; each list has K entries."""

    class_logits: torch.Tensor  # W^cls (R, C)
    detection_logits: torch.Tensor  # W^det (R, C)
    refined_logits: list[torch.Tensor]  # (R, 1 + C), background first
    offsets: list[torch.Tensor]  # (R, 4)
    quality_logits: torch.Tensor  # (R,)


class View(NamedTuple):
    """One view of an image; `scale`, `width` and `flipped` map boxes into it."""

    features: torch.Tensor  # (1, D, h, w)
    scale: torch.Tensor  # (4,)
    width: int  # pixels
    flipped: bool

    def boxes(self, boxes_xyxy: Float[torch.Tensor, "R 4"]) -> Float[torch.Tensor, "R 4"]:
        """Return boxes of the image in the frame of the view."""
        scaled = boxes_xyxy.to(self.scale) * self.scale
        return mirror_boxes(scaled, self.width) if self.flipped else scaled


class ImagenetWspn(Wspn):
    """The network; it computes on the device of its weights."""

    config: ImagenetWspnConfig
    trunk: nn.Sequential | nn.ModuleDict  # ResNet-50's, or VGG16's

    def __init__(self, config: ImagenetWspnConfig) -> None:
        super().__init__()
        self.config = config
        classes = len(config.category_ids)
        if config.backbone == "vgg16":
            self.trunk, width = vgg16_trunk(config.dropout), 4096
        else:
            self.trunk, width = resnet50_trunk(), 2048
        self.class_part = nn.Linear(width, 2 * classes)
        self.refinement_parts = nn.ModuleList(
            nn.Linear(width, 1 + classes + 4) for _ in range(config.refinements)
        )
        self.quality_part = nn.Linear(width, 1)
        for head in (self.class_part, *self.refinement_parts, self.quality_part):
            nn.init.normal_(head.weight, std=0.001)
            nn.init.zeros_(head.bias)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.class_part.weight.device

    def feature_map(self, pixels: Float[torch.Tensor, "1 3 H W"]) -> Float[torch.Tensor, "1 D h w"]:
        """Return the map of normalised pixels, at stride 8 (VGG16) or 16 (ResNet-50)."""
        if isinstance(self.trunk, nn.ModuleDict):
            return self.trunk["features"](pixels)  # stride 8
        return self.trunk[:-1](pixels)  # up to layer3, stride 16

    def region_features(
        self, feature_map: Float[torch.Tensor, "1 D h w"], boxes_xyxy: Float[torch.Tensor, "R 4"]
    ) -> Float[torch.Tensor, "R F"]:
        """Return the heads' input for boxes in the view's pixels.

        Boxes are pooled in parts of `regions_at_once`. With gradients and several parts, only the
        results are kept and the rest is recomputed in the backward pass, so thousands of proposals
        take the memory of one part. A single part is not recomputed.
        """
        parts = boxes_xyxy.split(self.config.regions_at_once)
        if torch.is_grad_enabled() and len(parts) == 1:
            return self._pool(feature_map, boxes_xyxy)
        if torch.is_grad_enabled():
            again = [checkpoint(self._pool, feature_map, p, use_reentrant=False) for p in parts]
            return torch.cat(again)
        with own_kernels():
            return torch.cat([self._pool(feature_map, part) for part in parts])

    def _pool(self, feature_map: torch.Tensor, boxes_xyxy: torch.Tensor) -> torch.Tensor:
        first = torch.zeros(len(boxes_xyxy), dtype=torch.int64, device=boxes_xyxy.device)
        if isinstance(self.trunk, nn.ModuleDict):
            pooled = pool_regions(feature_map, boxes_xyxy, first, 7, 8, first_centre(8, True))
            return self.trunk["classifier"](pooled.flatten(1))
        pooled = pool_regions(feature_map, boxes_xyxy, first, 14, 16, first_centre(16, False))
        return self.trunk[-1](pooled).mean((2, 3))

    def heads(self, features: Float[torch.Tensor, "R F"]) -> Outputs:
        """Return the heads' outputs for region features."""
        classes, detection = self.class_part(features).chunk(2, dim=1)
        count = 1 + len(self.config.category_ids)
        refined = [part(features).tensor_split([count], dim=1) for part in self.refinement_parts]
        return Outputs(
            classes,
            detection,
            [logits for logits, _ in refined],
            [offsets for _, offsets in refined],
            self.quality_part(features)[:, 0],
        )

    @torch.no_grad()
    def extract_features(
        self, image: UInt8[np.ndarray, "H W 3"], views: ViewSettings
    ) -> ImageFeatures:
        """Return the maps of all views; boxes are in the frame of the image itself."""
        maps = []
        for side in views.shorter_sides:
            pixels, scale = view_input(image, side, views.longer_side, False)
            pixels, factors = send(pixels, self.device), torch.from_numpy(scale).to(self.device)
            for flipped in (False, True) if views.flip else (False,):
                features = self.feature_map(pixels.flip(3) if flipped else pixels)
                maps.append(View(features, factors, pixels.shape[3], flipped))
        return ImageFeatures(maps, np.ones(4, np.float32), image.shape[:2])

    def score_classes(
        self, features: ImageFeatures, boxes_xyxy: Float[torch.Tensor, "R 4"]
    ) -> Float[torch.Tensor, "R C"]:
        """Return class scores, averaged over views and refinements."""
        return self.assess(features, boxes_xyxy)[0]

    def score_objects(
        self, features: ImageFeatures, boxes_xyxy: Float[torch.Tensor, "R 4"]
    ) -> tuple[Float[torch.Tensor, " R"], Float[torch.Tensor, "R 4"]]:
        """Return quality, averaged over views, and offsets, also averaged over refinements."""
        return self.assess(features, boxes_xyxy)[1:]

    @torch.no_grad()
    def assess(
        self, features: ImageFeatures, boxes_xyxy: Float[torch.Tensor, "R 4"]
    ) -> tuple[Float[torch.Tensor, "R C"], Float[torch.Tensor, " R"], Float[torch.Tensor, "R 4"]]:
        """Return class scores, quality and offsets from one pass over the regions."""
        scores, qualities, offsets = [], [], []
        for view in features.maps:
            outputs = self.heads(self.region_features(view.features, view.boxes(boxes_xyxy)))
            logits = torch.stack(outputs.refined_logits)
            scores.append(logits.softmax(2)[:, :, 1:].mean(0))
            qualities.append(outputs.quality_logits.sigmoid())
            mean = torch.stack(outputs.offsets).mean(0)
            if view.flipped:  # in the mirror, a shift to the right is one to the left
                mean = mean * mean.new_tensor([-1, 1, 1, 1])
            offsets.append(mean)
        means = [torch.stack(views).mean(0) for views in (scores, qualities, offsets)]
        return means[0], means[1], means[2]
