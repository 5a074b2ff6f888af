"""What the proposal network is given: a picture at a fixed size and the scale of its boxes."""

import cv2
import numpy as np
import torch

from stages.common.images import normalise_pixels


def network_input(image: np.ndarray, longer_side: int) -> tuple[torch.Tensor, np.ndarray]:
    """Scale a picture so that its longer side has `longer_side` pixels.

    Args:
        image: RGB uint8 (H, W, 3).
        longer_side: of the result.

    Returns:
        (normalised pixels float32 (1, 3, h, w); float32 (4,), by which boxes x0, y0, x1, y1 of
        the picture have to be multiplied to lie in them)
    """
    height, width = image.shape[:2]
    factor = longer_side / max(height, width)
    small_hw = max(1, round(height * factor)), max(1, round(width * factor))
    if small_hw != (height, width):
        how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, small_hw[::-1], interpolation=how)
    scale = np.array([small_hw[1] / width, small_hw[0] / height] * 2, np.float32)
    return normalise_pixels(image[None]), scale
