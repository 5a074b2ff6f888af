"""Selective search: unsupervised object proposals from grouped segments (OpenCV-contrib's version).

Mask-free OVIS, pseudo bounding box generation, step 1: U = {u_1, …, u_R}.
Shape legend: R proposals, of which K are kept, H W pixels. Boxes: x0, y0, x1, y1 in pixels of the
given image, origin top-left; x1 and y1 are exclusive edges.

OpenCV ranks a proposal by its level in the hierarchy times a random number from C's `rand()`, which
`cv2.setRNGSeed` does not seed. Without `srand` before each image, the order would depend on all
images that the process searched before.
"""

import ctypes
from collections.abc import Callable
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8
from pydantic import Field

from stages.common.runtime.params import Section
from stages.common.runtime.seeding import derive_seed

Mode = Literal["single", "fast", "quality"]


class SearchSettings(Section):
    """How to search and which boxes to keep: section `proposals` of params.yaml."""

    mode: Mode
    longer_side: int = Field(ge=32)
    min_side: float = Field(ge=1)
    max_area_fraction: float = Field(gt=0, le=1)
    max_aspect: float = Field(ge=1, allow_inf_nan=True)


def selective_search(
    image: UInt8[np.ndarray, "H W 3"], settings: SearchSettings, seed: int, image_id: int
) -> Float32[np.ndarray, "R 4"]:
    """Return the proposals of one image in the method's own order, best first.

    Args:
        image: RGB.
        settings: mode, size of the searched image and filters.
        seed: the experiment's seed; with `image_id` it fixes the order.
        image_id: the image's id.

    Returns:
        Distinct boxes inside the image; R is 0 if none passes the filters.
    """
    height, width = image.shape[:2]
    shrink = min(1.0, settings.longer_side / max(height, width))
    small_hw = max(1, round(height * shrink)), max(1, round(width * shrink))
    small = image
    if small_hw != (height, width):
        small = cv2.resize(image, small_hw[::-1], interpolation=cv2.INTER_AREA)
    boxes_xywh = _search(small, settings.mode, derive_seed(seed, "selective search", image_id))
    boxes_xyxy = np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)
    back = np.array([width / small_hw[1], height / small_hw[0]] * 2)
    return keep_usable((boxes_xyxy * back).astype(np.float32), (height, width), settings)


def keep_usable(
    boxes_xyxy: Float[np.ndarray, "R 4"], image_hw: tuple[int, int], settings: SearchSettings
) -> Float[np.ndarray, "K 4"]:
    """Drop tiny, thin, nearly image-sized and repeated boxes; keep the order of the rest."""
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    shorter, longer = sides.min(axis=1), sides.max(axis=1)
    usable = shorter >= settings.min_side
    usable &= longer <= settings.max_aspect * shorter
    usable &= sides.prod(axis=1) <= settings.max_area_fraction * image_hw[0] * image_hw[1]
    kept = boxes_xyxy[usable]
    first = np.unique(kept, axis=0, return_index=True)[1]
    return kept[np.sort(first)]


def _search(image: np.ndarray, mode: Mode, seed: int) -> np.ndarray:
    """Return int32 (R, 4) x, y, width, height in OpenCV's order, with repetitions."""
    cv2.setNumThreads(1)
    ctypes.CDLL(None).srand(ctypes.c_uint(seed & 0xFFFFFFFF))
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image[..., ::-1]))
    switches: dict[Mode, Callable[[], None]] = {
        "single": search.switchToSingleStrategy,
        "fast": search.switchToSelectiveSearchFast,
        "quality": search.switchToSelectiveSearchQuality,
    }
    switches[mode]()
    return np.asarray(search.process(), np.int32).reshape(-1, 4)
