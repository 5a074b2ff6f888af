"""Box coder: expresses a box as offsets from another box, in R-CNN's parameterisation.

Shape legend: R boxes; corners x0, y0, x1, y1 in pixels, float. Offsets are (dx, dy, dw, dh): the
shift of the centre in units of the box's sides, and the logarithm of the ratio of the sides, each
times its weight.
Source: Mask-free OVIS eq. 5, the targets t̂(u_i); weights 10, 10, 5, 5 as in wetectron.
"""

import torch
from jaxtyping import Float

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
LARGEST_LOG_SIDE = 1.0  # a regression changes a side by a factor of e at most


def encode_boxes(
    boxes_xyxy: Float[torch.Tensor, "R 4"], targets_xyxy: Float[torch.Tensor, "R 4"]
) -> Float[torch.Tensor, "R 4"]:
    """Return the weighted offsets from each box to its target; all sides must be positive."""
    centres, sides = _centres_and_sides(boxes_xyxy)
    target_centres, target_sides = _centres_and_sides(targets_xyxy)
    shifts = (target_centres - centres) / sides
    offsets = torch.cat([shifts, torch.log(target_sides / sides)], dim=1)
    return offsets * offsets.new_tensor(WEIGHTS)


def decode_boxes(
    boxes_xyxy: Float[torch.Tensor, "R 4"],
    offsets: Float[torch.Tensor, "R 4"],
    image_hw: tuple[int, int],
) -> Float[torch.Tensor, "R 4"]:
    """Return the boxes that weighted offsets lead to, clipped to the image.

    Each box is at least one pixel wide and high.
    """
    centres, sides = _centres_and_sides(boxes_xyxy)
    shifts, logs = (offsets / offsets.new_tensor(WEIGHTS)).split(2, dim=1)
    centres = centres + shifts * sides
    sides = sides * logs.clamp(-LARGEST_LOG_SIDE, LARGEST_LOG_SIDE).exp()
    limit = sides.new_tensor([image_hw[1], image_hw[0]])
    top_left = torch.minimum((centres - sides / 2).clamp(min=0), limit - 1)
    bottom_right = torch.minimum(centres + sides / 2, limit)
    return torch.cat([top_left, torch.maximum(bottom_right, top_left + 1)], dim=1)


def _centres_and_sides(boxes_xyxy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    top_left, bottom_right = boxes_xyxy.split(2, dim=1)
    return (top_left + bottom_right) / 2, bottom_right - top_left
