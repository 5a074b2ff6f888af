"""Operations on activation maps at their own resolution; the grid of cells covers the image.

A map is bilinear between the centres of its cells and constant from the outermost centres to the
border. Nothing is computed at the image's resolution, so no cost grows with it.

Shape legend: T maps of one image, h w cells, H W pixels, R boxes.
Frame: cell (k, l) covers rows k·H/h … (k + 1)·H/h and columns l·W/w … (l + 1)·W/w of the image.
"""

import cv2
import numpy as np
from jaxtyping import Float, Float32, Float64


def smooth_maps(
    cells: Float[np.ndarray, "T h w"], image_hw: tuple[int, int], smoothing: float
) -> Float32[np.ndarray, "T h w"]:
    """Return maps blurred and rescaled to [0, 1]; a constant map becomes 0.

    Args:
        cells: the maps of one image.
        image_hw: height and width of the image.
        smoothing: standard deviation of a Gaussian blur, as a fraction of the image's longer side;
            0: no blur. The blur is ours: it spreads the activation from an object's most
            discriminative cells to their surroundings.
    """
    maps = np.ascontiguousarray(cells, np.float32)
    if smoothing > 0 and len(maps):
        down, across = (
            smoothing * max(image_hw) / side * count
            for side, count in zip(image_hw, maps.shape[1:], strict=True)
        )
        maps = np.stack(
            [
                cv2.GaussianBlur(m, (0, 0), across, sigmaY=down, borderType=cv2.BORDER_REFLECT)
                for m in maps
            ]
        )
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return np.where(high > low, (maps - low) / np.maximum(high - low, 1e-12), 0).astype(np.float32)


def enlarge_maps(
    maps: Float[np.ndarray, "T h w"], size_hw: tuple[int, int]
) -> Float[np.ndarray, "T {size_hw[0]} {size_hw[1]}"]:
    """Return maps sampled at the pixel centres of a grid of `size_hw`."""
    height, width = size_hw
    return np.stack([cv2.resize(m, (width, height), interpolation=cv2.INTER_LINEAR) for m in maps])


def bounded_hw(image_hw: tuple[int, int], longest: int) -> tuple[int, int]:
    """Return (height, width) of an image after its longer side is shrunk to at most `longest`."""
    scale = min(1.0, longest / max(image_hw))
    height, width = (max(1, round(side * scale)) for side in image_hw)
    return height, width


def integrate_boxes(
    maps: Float[np.ndarray, "T h w"],
    boxes_xyxy: Float[np.ndarray, "R 4"],
    image_hw: tuple[int, int],
) -> Float64[np.ndarray, "T R"]:
    """Return the integral of each map over each box; areas are in square pixels.

    The integral is exact: a bilinear map is separable, so one weight per cell and axis suffices.

    Args:
        maps: the maps of one image.
        boxes_xyxy: in pixels; parts outside the image add nothing.
        image_hw: height and width of the image.
    """
    count_down, count_across = maps.shape[1:]
    height, width = image_hw
    x0, y0, x1, y1 = boxes_xyxy.astype(np.float64).T
    across = _cell_weights(x0 / width, x1 / width, count_across) * width
    down = _cell_weights(y0 / height, y1 / height, count_down) * height
    strips = maps.astype(np.float64) @ across.T  # (T, h, R)
    return (strips * down.T).sum(1)


def _cell_weights(low: np.ndarray, high: np.ndarray, count: int) -> np.ndarray:
    """Return the weight (R, n) of each of n cells in the integral from low to high.

    `low` and `high` (R,) are fractions of an axis with `count` = n cells. Cell k contributes a hat
    function of width 2 around its centre k + 1/2. One more cell at each end repeats the value of
    its neighbour, which makes the map constant there.
    """
    centres = np.arange(-1, count + 1) + 0.5

    def integral_up_to(place: np.ndarray) -> np.ndarray:
        within = np.clip(place.clip(0, 1)[:, None] * count - centres + 1, 0, 2)
        return np.where(within < 1, within**2 / 2, 1 - (2 - within) ** 2 / 2)

    weights = (integral_up_to(high) - integral_up_to(low)) / count
    weights[:, 1] += weights[:, 0]
    weights[:, -2] += weights[:, -1]
    return weights[:, 1:-1]
