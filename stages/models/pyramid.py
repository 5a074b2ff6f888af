"""The small detector's backbone: the small VLM's trunk with a feature pyramid on top.

A backbone has `trunk` (the pretrained part), `pyramid` (the rest), `out_channels`, the `strides` of
the levels that regions are pooled from, and the `pixel_mean` and `pixel_std` (of values in 0..1)
that its pictures are normalised by. It maps them to an ordered dict of levels "0", "1", … from fine
to coarse.

Shape legend: N images, H W pixels.
"""

from collections import OrderedDict

import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from stages.common.images import PIXEL_MEAN, PIXEL_STD
from stages.models.detector_settings import TrunkParams
from stages.models.trunk import Residual, Trunk, conv_norm_relu


class TrunkPyramid(nn.Module):
    """The small VLM's trunk (strides 4 and 8), one more level of stride 16, and FPN."""

    strides = (4, 8, 16)
    pixel_mean, pixel_std = PIXEL_MEAN, PIXEL_STD

    def __init__(self, params: TrunkParams) -> None:
        super().__init__()
        self.trunk = Trunk(params.stem_width, params.width, params.residual_blocks)
        fine, coarse = self.trunk.stride4_channels, self.trunk.stride8_channels
        self.pyramid = nn.ModuleDict(
            {
                "stride16": nn.Sequential(conv_norm_relu(coarse, coarse, 2), Residual(coarse)),
                "merge": FeaturePyramidNetwork([fine, coarse, coarse], params.pyramid_width),
            }
        )
        self.out_channels = params.pyramid_width

    def forward(self, images: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        """Map normalised pixels (N, 3, H, W) to levels (N, out_channels, H/stride, W/stride)."""
        stride4, stride8 = self.trunk(images)
        levels = [stride4, stride8, self.pyramid["stride16"](stride8)]
        return self.pyramid["merge"](OrderedDict((str(k), x) for k, x in enumerate(levels)))
