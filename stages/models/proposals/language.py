"""The proposal network on the trunk and the words of the small vision-language model.

The trunk is frozen. Two parts assess a proposal:

- The class part (W^cls and W^det) reads the trunk's features in and around the box, and is trained
  with image labels of base classes. It scores base classes only.
- The object part predicts how well a box is localised and where its object's borders are. It reads
  only what all classes have in common: how well the vision-language features in and around the box
  match their best word, whichever word that is. So what it learns from seeds of base classes also
  holds for classes without labels. Ours: the paper does not say how its scores become
  class-agnostic.

Shape legend: R proposals of one image, C base classes, W words, D channels, E evidence maps, F
features, h w cells of stride 8. Boxes: x0, y0, x1, y1 in pixels of the network's input.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import nn
from torch.nn import functional
from torchvision.ops import roi_align

from stages.common.runtime.devices import own_kernels
from stages.models.backbones.trunk import Trunk
from stages.models.proposals.base import ImageFeatures, Wspn, class_scores
from stages.models.proposals.params import ViewSettings
from stages.models.proposals.views import network_input
from stages.models.vision_language.small_albef import SmallAlbef
from stages.models.vision_language.tokenizer import CaptionTokenizer

STRIDE = 8
SURROUNDINGS = 1.6  # side of the enlarged box, in sides of the original
EVIDENCE_MAPS = 6
GEOMETRY_FEATURES = 8
EVIDENCE_FEATURES = EVIDENCE_MAPS * (3 * 3 + 4 * 4 + 2) + GEOMETRY_FEATURES


@dataclass(frozen=True)
class LanguageWspnConfig:
    """Sizes; `category_ids` are the base classes in the order of the class scores."""

    category_ids: list[int]
    image_side: int
    stem_width: int
    width: int
    residual_blocks: int
    num_words: int
    class_hidden: int
    object_hidden: int
    dropout: float


class FeatureMaps(NamedTuple):
    """The frozen part's maps of one image."""

    trunk: torch.Tensor  # (1, D, h, w)
    evidence: torch.Tensor  # (1, E, h, w)
    image_hw: tuple[int, int]


class StandardisedMlp(nn.Module):
    """Standardises its input, then applies two hidden layers and a linear one."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, inputs: int, hidden: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("deviation", torch.ones(inputs))
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, outputs),
        )

    def fit(self, sample: Float[torch.Tensor, "R F"]) -> None:
        """Set mean and deviation from a sample of features; 0.05 is added to each deviation."""
        self.mean.copy_(sample.mean(0))
        self.deviation.copy_(deviation(sample, 0) + 0.05)

    def forward(self, features: Float[torch.Tensor, "R F"]) -> Float[torch.Tensor, "R _"]:
        """Map features to outputs."""
        return self.layers((features - self.mean) / self.deviation)


class LanguageWspn(Wspn):
    """The network; each method is one step of it."""

    config: LanguageWspnConfig
    words: torch.Tensor

    def __init__(self, config: LanguageWspnConfig) -> None:
        super().__init__()
        self.config = config
        width, classes = config.width, len(config.category_ids)
        self.trunk = Trunk(config.stem_width, width, config.residual_blocks)
        self.image_norm = nn.LayerNorm(width)
        self.patch_projection = nn.Linear(width, width)
        self.register_buffer("words", torch.zeros(config.num_words, width))
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        appearance = width * (2 * 2 + 1) + GEOMETRY_FEATURES
        self.class_part = StandardisedMlp(
            appearance, config.class_hidden, 2 * classes, config.dropout
        )
        self.object_part = StandardisedMlp(
            EVIDENCE_FEATURES, config.object_hidden, 5, config.dropout
        )

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.words.device

    def take_language(self, vlm: SmallAlbef, tokenizer: CaptionTokenizer) -> None:
        """Copy trunk, projection and words of the vision-language model.

        All words that an image can show are taken alike, so no class is favoured by its name.
        """
        self.trunk.load_state_dict(vlm.trunk.state_dict())
        self.image_norm.load_state_dict(vlm.image_norm.state_dict())
        self.patch_projection.load_state_dict(vlm.patch_projection.state_dict())
        words = vlm.word_embedding.weight[tokenizer.content_words()]
        self.words.copy_(functional.normalize(words.detach().float(), dim=-1))

    @torch.no_grad()
    def feature_maps(self, image: Float[torch.Tensor, "1 3 H W"]) -> FeatureMaps:
        """Return the maps of one image's normalised pixels, on the model's device.

        A cell's evidence is six numbers: soft maximum, maximum, deviation and sharpness of its
        similarities to all words, and the lengths of its two feature vectors. They tell how much
        there is to name, but not what.
        """
        self.trunk.eval()
        trunk = self.trunk(image.to(self.device))[1]
        projected = self.patch_projection(self.image_norm(trunk.flatten(2).transpose(1, 2)))
        logits = projected @ self.words.T
        evidence = torch.stack(
            [
                logits.logsumexp(-1),
                logits.amax(-1),
                deviation(logits, -1),
                logits.softmax(-1).amax(-1),
                projected.norm(dim=-1) / 8,
                trunk.flatten(2).norm(dim=1) / 8,
            ],
            dim=1,
        )
        height, width = image.shape[2:]
        return FeatureMaps(trunk, evidence.unflatten(2, trunk.shape[2:]), (height, width))

    def appearance(
        self, maps: FeatureMaps, boxes_xyxy: Float[torch.Tensor, "R 4"]
    ) -> Float[torch.Tensor, "R F"]:
        """Return the class part's input: features in and around the box, and its geometry."""
        around = enlarge(boxes_xyxy, SURROUNDINGS)
        inside = _pool(maps.trunk, boxes_xyxy, 2, samples=2)
        outside = _pool(maps.trunk, around, 1, samples=4)
        return torch.cat([inside, outside, geometry(boxes_xyxy, maps.image_hw)], dim=1)

    def evidence(
        self, maps: FeatureMaps, boxes_xyxy: Float[torch.Tensor, "R 4"]
    ) -> Float[torch.Tensor, "R F"]:
        """Return the object part's input: evidence in and around the box, and its geometry.

        It includes the maximum and mean of the evidence over the whole image.
        """
        inside = _pool(maps.evidence, boxes_xyxy, 3, samples=2)
        around = _pool(maps.evidence, enlarge(boxes_xyxy, SURROUNDINGS), 4, samples=2)
        anywhere = torch.cat([maps.evidence.amax((2, 3)), maps.evidence.mean((2, 3))], dim=1)
        everywhere = anywhere.expand(len(boxes_xyxy), -1)
        shape = geometry(boxes_xyxy, maps.image_hw)
        return torch.cat([inside, around, everywhere, shape], dim=1)

    def class_logits(
        self, appearance: Float[torch.Tensor, "R F"]
    ) -> tuple[Float[torch.Tensor, "R C"], Float[torch.Tensor, "R C"]]:
        """Return W^cls and W^det, both logits."""
        return tuple(self.class_part(appearance).chunk(2, dim=1))

    def objects(
        self, evidence: Float[torch.Tensor, "R F"]
    ) -> tuple[Float[torch.Tensor, "R 1"], Float[torch.Tensor, "R 4"]]:
        """Return quality logits, whose sigmoid is the expected IoU, and offsets."""
        return tuple(self.object_part(evidence).tensor_split([1], dim=1))

    def extract_features(
        self, image: UInt8[np.ndarray, "H W 3"], views: ViewSettings
    ) -> ImageFeatures:
        """Return the maps of the image, its longer side scaled to `config.image_side`.

        Boxes are in the frame of the scaled image. `views` is not used.
        """
        pixels, scale = network_input(image, self.config.image_side)
        maps = self.feature_maps(pixels)
        return ImageFeatures(maps, scale, maps.image_hw)

    def score_classes(
        self, features: ImageFeatures, boxes_xyxy: Float[torch.Tensor, "R 4"]
    ) -> Float[torch.Tensor, "R C"]:
        """Return W, whose sum over the proposals is p_c of eq. 5."""
        return class_scores(*self.class_logits(self.appearance(features.maps, boxes_xyxy)))

    def score_objects(
        self, features: ImageFeatures, boxes_xyxy: Float[torch.Tensor, "R 4"]
    ) -> tuple[Float[torch.Tensor, " R"], Float[torch.Tensor, "R 4"]]:
        """Return the object part's expected IoU and offsets."""
        logits, offsets = self.objects(self.evidence(features.maps, boxes_xyxy))
        return logits[:, 0].sigmoid(), offsets


def deviation(values: Float[torch.Tensor, "..."], dim: int) -> Float[torch.Tensor, "..."]:
    """Return the unbiased standard deviation along `dim`; 0 for a single value."""
    return values.std(dim, correction=min(1, values.shape[dim] - 1))


def geometry(
    boxes_xyxy: Float[torch.Tensor, "R 4"], image_hw: tuple[int, int]
) -> Float[torch.Tensor, "R 8"]:
    """Return logarithms of area, aspect and sides, and which image borders the box touches.

    Area and sides are fractions of the image's, aspect is width over height in pixels. A box
    touches a border that is less than 2 pixels away.
    """
    height, width = image_hw
    x0, y0, x1, y1 = boxes_xyxy.unbind(1)
    across, down = (x1 - x0) / width, (y1 - y0) / height
    sizes = [(across * down).log(), ((x1 - x0) / (y1 - y0)).log(), across.log(), down.log()]
    touches = [x0 < 2, y0 < 2, x1 > width - 2, y1 > height - 2]
    return torch.stack([*sizes, *(side.float() for side in touches)], dim=1)


def enlarge(boxes_xyxy: Float[torch.Tensor, "R 4"], factor: float) -> Float[torch.Tensor, "R 4"]:
    """Return boxes with the same centres and sides times `factor`; they may leave the image."""
    top_left, bottom_right = boxes_xyxy.split(2, dim=1)
    centres, half = (top_left + bottom_right) / 2, (bottom_right - top_left) / 2 * factor
    return torch.cat([centres - half, centres + half], dim=1)


def _pool(maps: torch.Tensor, boxes_xyxy: torch.Tensor, side: int, samples: int) -> torch.Tensor:
    with own_kernels():
        pooled = roi_align(maps, [boxes_xyxy], side, 1 / STRIDE, samples, aligned=True)
    return pooled.flatten(1)
