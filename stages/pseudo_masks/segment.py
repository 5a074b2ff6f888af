"""Pseudo-masks from pseudo-boxes.

Frame: boxes in pixels of the image; a mask is a bool array that covers its box only.
Shape legend: K objects, S pixels per side of a crop, H W pixels, h w cells of a map (in
`paste_mask`: pixels of the box).
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8

from stages.pseudo_masks.crops import (
    cut_maps,
    cut_pixels,
    inside_box,
    label_pixels,
    network_input,
    widen_boxes,
)
from stages.pseudo_masks.network import train_networks
from stages.pseudo_masks.params import PseudoMasksParams


@dataclass(frozen=True)
class Crops:
    """The crops of K objects, of one image or, after `join_crops`, of several."""

    pixels: Float[torch.Tensor, "K 3 S S"]
    activation: Float[torch.Tensor, "K S S"]
    boxes_xyxy: Float[np.ndarray, "K 4"]

    def to(self, device: torch.device) -> "Crops":
        """Return a copy on `device`; boxes stay NumPy arrays."""
        return Crops(self.pixels.to(device), self.activation.to(device), self.boxes_xyxy)


def make_crops(
    image: UInt8[np.ndarray, "H W 3"],
    maps: Float32[np.ndarray, "K h w"],
    boxes_xyxy: Float32[np.ndarray, "K 4"],
    params: PseudoMasksParams,
) -> Crops:
    """Return the crops of one image's objects.

    Args:
        image: RGB.
        maps: Φ of each object; the cells cover the image.
        boxes_xyxy: pseudo-boxes in pixels of the image.
        params: section `pseudo_masks`.
    """
    widened = widen_boxes(torch.from_numpy(boxes_xyxy), params.context)
    return Crops(
        cut_pixels(image, widened, params.crop_size),
        cut_maps(torch.from_numpy(maps), widened, image.shape[:2], params.crop_size),
        boxes_xyxy,
    )


def join_crops(parts: list[Crops]) -> Crops:
    """Return the crops of several images as one batch."""
    return Crops(
        torch.cat([part.pixels for part in parts]),
        torch.cat([part.activation for part in parts]),
        np.concatenate([part.boxes_xyxy for part in parts]),
    )


def segment_crops(
    crops: Crops, params: PseudoMasksParams, generator: torch.Generator
) -> Float32[np.ndarray, "K S S"]:
    """Return object logits; a pixel above 0 is object.

    `method: box` calls every pixel object, `method: threshold` every pixel whose activation exceeds
    `pseudo_masks.threshold`. They are the two simple masks that the network must beat.
    """
    if params.method == "box":
        return np.ones(crops.activation.shape, np.float32)
    if params.method == "threshold":
        return (crops.activation - params.threshold).cpu().numpy()
    inside = inside_box(params.crop_size, params.context, crops.activation.device)
    foreground, background = label_pixels(crops.activation, inside, params.seeds, generator)
    logits = train_networks(
        network_input(crops.pixels, params),
        foreground,
        background,
        inside,
        params.channels,
        params.steps,
        params.learning_rate,
        params.self_training,
        generator,
    )
    return logits.cpu().numpy()


def paste_mask(
    logits: Float[np.ndarray, "S S"],
    box_xyxy: Float[np.ndarray, "4"],
    image_hw: tuple[int, int],
    context: float,
    largest_component: bool,
) -> tuple[Bool[np.ndarray, "h w"], tuple[int, int]]:
    """Return an object's mask in its box, and the column and row of the mask's first pixel.

    The logits are resampled bilinearly and thresholded at 0. The mask covers the box, rounded to
    whole pixels and clipped to the image; it is (0, 0) if nothing remains.
    """
    height, width = image_hw
    left, top, right, bottom = np.rint(box_xyxy).astype(int).clip(0, [width, height] * 2).tolist()
    if right <= left or bottom <= top:
        return np.zeros((0, 0), bool), (left, top)
    size = logits.shape[0]
    x0, y0, x1, y1 = widen_boxes(torch.from_numpy(box_xyxy)[None], context)[0].tolist()
    scale_x, scale_y = size / (x1 - x0), size / (y1 - y0)
    # By pixel centres: column x of the mask is at (left + x + 0.5 - x0) * scale - 0.5 in the crop.
    to_crop = np.array(
        [
            [scale_x, 0, (left + 0.5 - x0) * scale_x - 0.5],
            [0, scale_y, (top + 0.5 - y0) * scale_y - 0.5],
        ]
    )
    resampled = cv2.warpAffine(
        logits,
        to_crop,
        (right - left, bottom - top),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    mask = resampled > 0
    return (keep_largest(mask) if largest_component else mask), (left, top)


def keep_largest(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Return the largest 8-connected component of a mask; an empty mask stays empty."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count <= 2:
        return mask
    return labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
