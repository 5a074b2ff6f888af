"""Activation maps at the picture's resolution.

Shape legend: T targets of one picture, h w map cells, H W pixels.
"""

import cv2
import numpy as np


def pixel_maps(cells: np.ndarray, image_hw: tuple[int, int], smoothing: float) -> np.ndarray:
    """Return maps (T, h, w) stretched over the picture, float32 (T, H, W) in [0, 1].

    Args:
        cells: the maps of one picture.
        image_hw: its height and width.
        smoothing: standard deviation of a Gaussian blur as a fraction of the picture's longer
            side; 0 leaves the maps as they are. The blur is ours: a patch grid names the object's
            most telling cells, and the blur lets them speak for their surroundings.
    """
    height, width = image_hw
    maps = np.stack(
        [cv2.resize(m, (width, height), interpolation=cv2.INTER_LINEAR) for m in cells]
    ).astype(np.float32)
    if smoothing > 0:
        sigma = smoothing * max(image_hw)
        maps = np.stack([cv2.GaussianBlur(m, (0, 0), sigma) for m in maps])
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return np.where(high > low, (maps - low) / np.maximum(high - low, 1e-12), 0).astype(np.float32)


def smooth_maps(cells: np.ndarray, image_hw: tuple[int, int], smoothing: float) -> np.ndarray:
    """Return maps (T, h, w) blurred on their own grid, float32 (T, h, w) in [0, 1].

    Args:
        cells: the maps of one picture.
        image_hw: its height and width.
        smoothing: standard deviation of a Gaussian blur as a fraction of the picture's longer
            side; 0 does not blur.
    """
    maps = np.asarray(cells, np.float32)
    if smoothing > 0:
        sigma = smoothing * max(image_hw)
        per_row, per_column = (
            sigma * side / pixels for side, pixels in zip(maps.shape[1:], image_hw, strict=True)
        )
        blurred = [cv2.GaussianBlur(m, (0, 0), sigmaX=per_column, sigmaY=per_row) for m in maps]
        maps = np.stack(blurred) if len(maps) else maps
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return np.where(high > low, (maps - low) / np.maximum(high - low, 1e-12), 0).astype(np.float32)


def enlarge_maps(maps: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Return maps (T, h, w) as (T, H, W), bilinear between the centres of their cells."""
    height, width = size_hw
    return np.stack(
        [cv2.resize(m, (width, height), interpolation=cv2.INTER_LINEAR) for m in maps]
    ).astype(np.float32)
