"""Crops around the pseudo-boxes, and their seeds: the pixels that are labelled before training.

Frame: a crop is the pseudo-box widened by `context` of its sides, resampled to a square.
Shape legend: K objects, S pixels per side of a crop, H W pixels of the image, h w cells of a map.
"""

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from torchvision.ops import roi_align

from stages.common.formats.images import normalise_pixels
from stages.pseudo_masks.params import PseudoMasksParams, SeedParams

LARGEST_WINDOW = 4  # crop sides; RoIAlign's 2 × 2 samples per crop pixel undersample more than this


def widen_boxes(
    boxes_xyxy: Float[torch.Tensor, "K 4"], context: float
) -> Float[torch.Tensor, "K 4"]:
    """Return boxes that are grown by `context` of their width and height on every side."""
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    return torch.cat(
        [boxes_xyxy[:, :2] - context * sides, boxes_xyxy[:, 2:] + context * sides], dim=1
    )


def cut_pixels(
    image: UInt8[np.ndarray, "H W 3"], widened_xyxy: Float[torch.Tensor, "K 4"], size: int
) -> Float32[torch.Tensor, "K 3 {size} {size}"]:
    """Return crops of one image's normalised pixels, 0 outside the image.

    Only a window around each box is read. A window with a side above `LARGEST_WINDOW` crop sides
    is first shrunk to that, by area averaging.
    """
    crops = [_cut_window(image, box, size) for box in widened_xyxy]
    return torch.cat(crops) if crops else torch.zeros(0, 3, size, size)


def _cut_window(image: np.ndarray, box_xyxy: torch.Tensor, size: int) -> torch.Tensor:
    limits = torch.tensor(image.shape[1::-1])
    corner = (box_xyxy[:2].floor() - 1).clamp(min=0)  # one more pixel on each side, to interpolate
    end = torch.minimum(box_xyxy[2:].ceil() + 1, limits)
    (left, top), (right, bottom) = corner.int().tolist(), end.int().tolist()
    window, most = image[top:bottom, left:right], LARGEST_WINDOW * size
    scale = torch.ones(2)
    if max(window.shape[:2]) > most:
        shrunk = [min(side, most) for side in window.shape[1::-1]]
        scale = torch.tensor(shrunk) / torch.tensor(window.shape[1::-1])
        window = cv2.resize(window, shrunk, interpolation=cv2.INTER_AREA)
    box = (box_xyxy.view(2, 2) - corner) * scale
    pixels = normalise_pixels(window[None])
    return roi_align(pixels, [box.view(1, 4)], size, sampling_ratio=2, aligned=True)


def cut_maps(
    maps: Float[torch.Tensor, "K h w"],
    widened_xyxy: Float[torch.Tensor, "K 4"],
    image_hw: tuple[int, int],
    size: int,
) -> Float[torch.Tensor, "K {size} {size}"]:
    """Return the activation in each crop, taken from the object's own map of the image."""
    cells_per_pixel = torch.tensor(maps.shape[1:]) / torch.tensor(image_hw)
    boxes = widened_xyxy * cells_per_pixel.flip(0).repeat(2)
    rows = torch.cat([torch.arange(len(boxes))[:, None].to(boxes), boxes], dim=1)
    return roi_align(maps[:, None], rows, size, sampling_ratio=2, aligned=True)[:, 0]


def inside_box(
    size: int, context: float, device: torch.device | None = None
) -> Bool[torch.Tensor, "{size} {size}"]:
    """Return which pixels of a crop are centred inside the box, not in its context."""
    place = (torch.arange(size, device=device) + 0.5) / size * (1 + 2 * context) - context
    within = (place > 0) & (place < 1)
    return within[:, None] & within[None, :]


def label_pixels(
    activation: Float[torch.Tensor, "K S S"],
    inside: Bool[torch.Tensor, "S S"],
    params: SeedParams,
    generator: torch.Generator,
) -> tuple[Bool[torch.Tensor, "K S S"], Bool[torch.Tensor, "K S S"]]:
    """Return the pixels labelled as object and those labelled as background.

    `most_activated` and `least_activated` are the paper's: the Z most activated pixels in the box
    are object and the Z least activated are background. Here each Z is a fraction of the box, so
    that it scales with the object.

    `random_activated` and `border` follow the official code: object pixels are drawn at random from
    the activated ones, and a rectangle along the border of the box is background. Ours: a pixel is
    activated if it is at least the mean of the box (official: on in the union of Otsu maps), and
    the rectangle is the outermost pixels of the box (official: 5 pixels further in).

    Pixels outside the box are background in all cases (ours: the paper's crop is the box).

    Args:
        activation: Φ in the crops.
        inside: from `inside_box`.
        params: section `pseudo_masks.seeds`.
        generator: for the random draw.

    Source: Mask-free OVIS, pseudo mask generation, F_z and B_z.
    """
    within = activation[:, inside]
    count = within.shape[1]
    wanted = max(1, round(params.foreground_fraction * count))
    if params.foreground == "most_activated":
        chosen = _highest(within, wanted)
    else:
        active = within >= within.mean(1, keepdim=True)
        # One draw for all objects, so that no mask depends on the others of its batch.
        draw = torch.rand(1, count, generator=generator, device=generator.device)
        chosen = _highest(draw.to(within.device) + active, wanted) & active
    foreground = torch.zeros_like(activation, dtype=torch.bool)
    foreground[:, inside] = chosen
    if params.background == "least_activated":
        lowest = _highest(-within, max(1, round(params.background_fraction * count)))
        background = torch.zeros_like(foreground)
        background[:, inside] = lowest & ~chosen
    else:
        background = (inside & ~_erode(inside)).expand_as(foreground) & ~foreground
    return foreground, background | ~inside


def _highest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Return bool (K, N), True at the `count` highest values of each row, also if values tie."""
    chosen = torch.zeros_like(values, dtype=torch.bool)
    order = values.argsort(dim=1, descending=True, stable=True)[:, :count]
    return chosen.scatter_(1, order, True)


def _erode(inside: torch.Tensor) -> torch.Tensor:
    """Return the box, bool (S, S), without its outermost pixels."""
    padded = torch.nn.functional.pad(inside, (1, 1, 1, 1))
    return inside & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def network_input(
    crops: Float[torch.Tensor, "K 3 S S"], params: PseudoMasksParams
) -> Float[torch.Tensor, "K _ S S"]:
    """Return the crops, with two more channels, x and y in [-1, 1], if `coordinates` is set."""
    if not params.coordinates:
        return crops
    ramp = torch.linspace(-1, 1, crops.shape[-1], device=crops.device)
    rows, columns = torch.meshgrid(ramp, ramp, indexing="ij")
    grid = torch.stack([columns, rows]).expand(len(crops), -1, -1, -1)
    return torch.cat([crops, grid], dim=1)
