"""The detector's backbones: the small VLM's trunk, and ResNet-50 with an FPN or up to C4.

Batch norms of ResNet-50 are frozen: their statistics and scales are constants.
Shape legend: N images, H W pixels, R regions, S cells per side of a region.
"""

from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import nn
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from stages.common.formats.images import PIXEL_MEAN, PIXEL_STD
from stages.models.backbones.fpn import AlignedPyramid
from stages.models.backbones.imagenet import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    freeze_stages,
    resnet50_trunk,
)
from stages.models.backbones.trunk import Residual, Trunk, conv_norm_relu
from stages.models.detection.params import (
    BackboneParams,
    Resnet50C4Params,
    Resnet50FpnParams,
    TrunkParams,
)

STAGE_CHANNELS = {"layer1": 256, "layer2": 512, "layer3": 1024, "layer4": 2048}
REGION_STAGE_CHANNELS = STAGE_CHANNELS["layer4"]


Levels = OrderedDict[str, Float[torch.Tensor, "N D _ _"]]  # of a pyramid, from fine to coarse


class Backbone(nn.Module):
    """Maps normalised images to an ordered dict of levels "0", "1", … from fine to coarse.

    Attributes:
        trunk: the pretrained part.
        pyramid: the rest.
        out_channels: of each level.
        level_strides: of all levels.
        strides: of the levels from which regions are pooled.
        central: see `first_centre` of roi_align.
        pixel_mean: per channel, of values in 0..1; images are normalised by it.
        pixel_std: the standard deviation, likewise.
    """

    trunk: nn.Module
    pyramid: nn.Module
    out_channels: int
    level_strides: tuple[int, ...]
    strides: tuple[int, ...]
    central: bool
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]


class TrunkPyramid(Backbone):
    """The small VLM's trunk (strides 4 and 8), another level of stride 16, and an FPN."""

    pyramid: nn.ModuleDict
    level_strides = strides = 4, 8, 16
    central = True
    pixel_mean, pixel_std = PIXEL_MEAN, PIXEL_STD

    def __init__(self, params: TrunkParams) -> None:
        super().__init__()
        self.trunk = Trunk(params.stem_width, params.width, params.residual_blocks)
        fine, coarse = self.trunk.stride4_channels, self.trunk.stride8_channels
        self.pyramid = nn.ModuleDict(
            {
                "stride16": nn.Sequential(conv_norm_relu(coarse, coarse, 2), Residual(coarse)),
                "merge": AlignedPyramid(
                    [fine, coarse, coarse], params.pyramid_width, central=self.central
                ),
            }
        )
        self.out_channels = params.pyramid_width

    def forward(self, images: Float[torch.Tensor, "N 3 H W"]) -> Levels:
        """Map normalised pixels to levels of `out_channels`, H/stride and W/stride."""
        stride4, stride8 = self.trunk(images)
        levels = [stride4, stride8, self.pyramid["stride16"](stride8)]
        return self.pyramid["merge"](OrderedDict((str(k), x) for k, x in enumerate(levels)))


class Resnet50Fpn(Backbone):
    """ResNet-50 and an FPN of strides 4 to 64 or 128.

    Beyond stride 32, `pool` subsamples the level before (Source: Feature Pyramid Networks, section
    4.1), and `p6p7` adds two levels by convolutions (Source: FCOS, section 3.2). Regions are not
    pooled from them. The parts are torchvision's, aligned.
    """

    strides, central = (4, 8, 16, 32), False
    pixel_mean, pixel_std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self, params: Resnet50FpnParams) -> None:
        super().__init__()
        self.trunk = resnet50_trunk()
        freeze_stages(self.trunk, params.frozen_stages)
        width = self.out_channels = params.pyramid_width
        pool = params.extra_levels == "pool"
        self.level_strides = (*self.strides, 64) if pool else (*self.strides, 64, 128)
        self.pyramid = AlignedPyramid(
            list(STAGE_CHANNELS.values()),
            width,
            LastLevelMaxPool() if pool else LastLevelP6P7(width, width),
            central=self.central,
        )

    def forward(self, images: Float[torch.Tensor, "N 3 H W"]) -> Levels:
        """Map normalised pixels to all levels of `out_channels`, H/stride and W/stride."""
        levels, x = [], images
        for name, stage in self.trunk.named_children():
            x = stage(x)
            levels += [x] if name in STAGE_CHANNELS else []
        merged = self.pyramid(OrderedDict((str(k), level) for k, level in enumerate(levels)))
        return OrderedDict((str(k), level) for k, level in enumerate(merged.values()))


class Resnet50C4(Backbone):
    """ResNet-50 without its last stage: one level of stride 16."""

    level_strides = strides = (16,)
    central = False
    pixel_mean, pixel_std = IMAGENET_MEAN, IMAGENET_STD
    out_channels = STAGE_CHANNELS["layer3"]

    def __init__(self, params: Resnet50C4Params, trunk: nn.Sequential) -> None:
        """Take the stages up to layer3 as `trunk`."""
        super().__init__()
        self.trunk = trunk
        freeze_stages(self.trunk, params.frozen_stages)
        self.pyramid = nn.Identity()

    def forward(self, images: Float[torch.Tensor, "N 3 H W"]) -> Levels:
        """Map normalised pixels to one level of 1024 channels, H/16 and W/16."""
        return OrderedDict([("0", self.pyramid(self.trunk(images)))])


def build_backbone(params: BackboneParams) -> tuple[Backbone, nn.Module | None]:
    """Return a fresh backbone of the given `kind`, and the stage that runs on each region.

    That stage is the last one of C4, (R, 1024, S, S) to (R, 2048, S/2, S/2), rounded up. Pyramids
    have None.
    """
    if isinstance(params, TrunkParams):
        return TrunkPyramid(params), None
    if isinstance(params, Resnet50FpnParams):
        return Resnet50Fpn(params), None
    whole = resnet50_trunk()
    return Resnet50C4(params, whole[:-1]), whole[-1]


def whole_trunk(trunk: nn.Module, region_stage: nn.Module | None) -> nn.Sequential:
    """Return a ResNet-50 of the given parts, under torchvision's names; weights are shared."""
    whole = nn.Sequential(OrderedDict(trunk.named_children()))
    if region_stage is not None:
        whole.add_module("layer4", region_stage)
    return whole
