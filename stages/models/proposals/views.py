"""Inputs of the proposal networks: an image at some size, and the scale of its boxes.

Shape legend: H W pixels of the image, h w pixels of the scaled image, R boxes.
"""

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torchvision.transforms.functional import normalize

from stages.common.formats.images import normalise_pixels
from stages.models.backbones.imagenet import IMAGENET_MEAN, IMAGENET_STD


def network_input(
    image: UInt8[np.ndarray, "H W 3"], longer_side: int
) -> tuple[Float32[torch.Tensor, "1 3 h w"], Float32[np.ndarray, "4"]]:
    """Scale an image so that its longer side has `longer_side` pixels.

    Args:
        image: RGB.
        longer_side: of the result, in pixels.

    Returns:
        (normalised pixels; the factors that scale boxes x0, y0, x1, y1 from the image to the
        result)
    """
    image, scale = _resize(image, longer_side / max(image.shape[:2]))
    return normalise_pixels(image[None]), scale


def view_input(
    image: UInt8[np.ndarray, "H W 3"], shorter_side: int, longer_side: int, flip: bool
) -> tuple[Float32[torch.Tensor, "1 3 h w"], Float32[np.ndarray, "4"]]:
    """Scale an image to a view of an ImageNet backbone, and mirror it if `flip`.

    Returns:
        As `network_input`, but normalised by ImageNet's mean and deviation. The factors are those
        before mirroring.
    """
    height, width = image.shape[:2]
    factor = min(shorter_side / min(height, width), longer_side / max(height, width))
    image, scale = _resize(image, factor)
    image = image[:, ::-1] if flip else image
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].float() / 255
    return normalize(pixels, IMAGENET_MEAN, IMAGENET_STD), scale


def mirror_boxes(boxes_xyxy: Float[torch.Tensor, "R 4"], width: int) -> Float[torch.Tensor, "R 4"]:
    """Return boxes of an image, `width` pixels wide, as they lie in its mirror image."""
    x0, y0, x1, y1 = boxes_xyxy.unbind(1)
    return torch.stack([width - x1, y0, width - x0, y1], dim=1)


def _resize(image: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    height, width = image.shape[:2]
    small_hw = max(1, round(height * factor)), max(1, round(width * factor))
    if small_hw != (height, width):
        how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, small_hw[::-1], interpolation=how)
    return image, np.array([small_hw[1] / width, small_hw[0] / height] * 2, np.float32)
