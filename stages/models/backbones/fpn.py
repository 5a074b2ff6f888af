"""Feature pyramid network whose levels stay aligned with the image.

Shape legend: N images, D channels, h w cells of a level.
"""

from collections import OrderedDict
from typing import Any

import torch
from jaxtyping import Float
from torchvision.ops import FeaturePyramidNetwork


class AlignedPyramid(FeaturePyramidNetwork):
    """torchvision's feature pyramid, but coarse levels are interpolated at the fine cells' centres.

    Source: Feature Pyramid Networks, section 3. The paper copies the nearest coarse cell instead,
    which shifts features by up to half a coarse stride.
    """

    def __init__(self, *arguments: Any, central: bool, **settings: Any) -> None:
        """Take what the parent takes; for `central` see `first_centre` of roi_align."""
        super().__init__(*arguments, **settings)
        self.central = central

    def forward(
        self, x: dict[str, Float[torch.Tensor, "N _ _ _"]]
    ) -> OrderedDict[str, Float[torch.Tensor, "N D _ _"]]:
        """Map levels, from fine to coarse, to `out_channels` each.

        Each level has half the size of the one before. `extra_blocks` may append coarser levels.
        """
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


def double(
    x: Float[torch.Tensor, "N D _ _"], dim: int, central: bool
) -> Float[torch.Tensor, "N D _ _"]:
    """Return a map with twice as many cells along one dimension, linearly interpolated.

    In a central grid, the two new cells lie a quarter of a cell before and behind each old one.
    Otherwise one lies on the old cell and the other halfway to the next. The outermost cells extend
    to the border.
    """
    count = x.shape[dim]
    behind = torch.cat([x.narrow(dim, 1, count - 1), x.narrow(dim, count - 1, 1)], dim)
    if not central:
        pair = [x, (x + behind) / 2]
    else:
        before = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, count - 1)], dim)
        pair = [0.75 * x + 0.25 * before, 0.75 * x + 0.25 * behind]
    return torch.stack(pair, dim + 1).flatten(dim, dim + 1)
