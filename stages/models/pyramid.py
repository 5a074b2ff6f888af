"""Feature pyramids whose cells look where they are drawn, and the small detector's backbone.

A backbone has `trunk` (the pretrained part), `pyramid` (the rest), `out_channels`, the `strides` of
the levels that regions are pooled from, `central` (see `first_centre` of region_pooling), and the
`pixel_mean` and `pixel_std` (of values in 0..1) that its images are normalised by. It maps them to
an ordered dict of levels "0", "1", … from fine to coarse.

Shape legend: N images, D channels, H W pixels, h w cells of a level.
"""

from collections import OrderedDict

import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from stages.common.images import PIXEL_MEAN, PIXEL_STD
from stages.models.detector_settings import TrunkParams
from stages.models.trunk import Residual, Trunk, conv_norm_relu


class AlignedPyramid(FeaturePyramidNetwork):
    """torchvision's feature pyramid with coarse levels interpolated at the fine cells' centres.

    Source: Feature Pyramid Networks, section 3, which copies the nearest coarse cell: a fine cell
    then sees up to half a coarse stride beside itself.
    """

    def __init__(self, *arguments, central: bool, **settings) -> None:
        """Take whether the grid is central, and all that the parent takes."""
        super().__init__(*arguments, **settings)
        self.central = central

    def forward(self, x: dict[str, torch.Tensor]) -> OrderedDict[str, torch.Tensor]:
        """Map levels (N, D_k, h, w), each half the size of the one before, to out_channels each."""
        levels, names = list(x.values()), list(x)
        merged = self.get_result_from_inner_blocks(levels[-1], -1)
        results = [self.get_result_from_layer_blocks(merged, -1)]
        for index in reversed(range(len(levels) - 1)):
            lateral = self.get_result_from_inner_blocks(levels[index], index)
            for dim, size in ((2, lateral.shape[2]), (3, lateral.shape[3])):
                merged = double(merged, dim, self.central).narrow(dim, 0, size)
            merged = lateral + merged
            results.insert(0, self.get_result_from_layer_blocks(merged, index))
        if self.extra_blocks is not None:
            results, names = self.extra_blocks(results, levels, names)
        return OrderedDict(zip(names, results, strict=True))


def double(x: torch.Tensor, dim: int, central: bool) -> torch.Tensor:
    """Return a map with twice the cells along one dimension, interpolated between its own.

    In a central grid the new cells lie a quarter of a cell before and behind each old one, else on
    it and half-way to the next. The outermost cells extend to the border.
    """
    count = x.shape[dim]
    behind = torch.cat([x.narrow(dim, 1, count - 1), x.narrow(dim, count - 1, 1)], dim)
    if not central:
        pair = [x, (x + behind) / 2]
    else:
        before = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, count - 1)], dim)
        pair = [0.75 * x + 0.25 * before, 0.75 * x + 0.25 * behind]
    return torch.stack(pair, dim + 1).flatten(dim, dim + 1)


class TrunkPyramid(nn.Module):
    """The small VLM's trunk (strides 4 and 8), one more level of stride 16, and FPN."""

    strides, central = (4, 8, 16), True
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

    def forward(self, images: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        """Map normalised pixels (N, 3, H, W) to levels (N, out_channels, H/stride, W/stride)."""
        stride4, stride8 = self.trunk(images)
        levels = [stride4, stride8, self.pyramid["stride16"](stride8)]
        return self.pyramid["merge"](OrderedDict((str(k), x) for k, x in enumerate(levels)))
