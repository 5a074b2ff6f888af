"""Targets of a mask head: the part of an object in each cell of a region.

Shape legend: R regions, m objects of an image, H W pixels, M cells per side of a mask.
"""

import torch
from jaxtyping import Float, Int, UInt8
from torchvision.ops import roi_align

from stages.common.runtime.devices import own_kernels


def mask_targets(
    boxes_xyxy: list[Float[torch.Tensor, "_ 4"]],
    masks: list[UInt8[torch.Tensor, "_ _ _"]],
    objects: list[Int[torch.Tensor, " _"]],
    side: int,
) -> Float[torch.Tensor, "R {side} {side}"]:
    """Return the fraction of each cell that the object covers, for the regions of all images.

    It is computed by RoIAlign with the half-pixel alignment of the features. torchvision's loss
    leaves the alignment out, and its targets lie half a pixel off.

    Args:
        boxes_xyxy: the regions of each image, in pixels of its masks.
        masks: 0 or 1, (m, H, W) of each image.
        objects: the index of each region's object among the masks of its image.
        side: M.
    """
    with own_kernels():  # no gradient passes through
        return torch.cat(
            [
                roi_align(
                    own[:, None].to(boxes),
                    torch.cat([index[:, None].to(boxes), boxes], dim=1),
                    side,
                    aligned=True,
                )[:, 0]
                for own, boxes, index in zip(masks, boxes_xyxy, objects, strict=True)
            ]
        )
