"""What a mask head is to answer: the part of an object in each cell of a region.

Shape legend: R regions, m objects of an image, M cells of a mask's side.
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
    """Return which fraction of each cell the object covers, of all images.

    By RoIAlign as the features have it: without its half-pixel alignment, as in torchvision's loss,
    targets lie half a pixel off.

    Args:
        boxes_xyxy: the regions of each image.
        masks: 0 or 1, (m, H, W) of each image.
        objects: which of its masks each region is to show.
        side: M.
    """
    with own_kernels():  # no gradient goes through it
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
