"""The image input of the vision-language models: a square.

Shape legend: H W pixels of the image, S pixels per side of the square.
"""

import cv2
import numpy as np
from jaxtyping import UInt8


def resize_square(image: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[np.ndarray, "S S 3"]:
    """Resize to S = `size` per side without keeping the aspect ratio, as ALBEF does.

    A side that shrinks is averaged first: with INTER_AREA alone, OpenCV would skip its pixels if
    the other side grows. A side that grows is interpolated bicubically, as officially.
    """
    height, width = image.shape[:2]
    shrunk_wh = min(width, size), min(height, size)
    if shrunk_wh != (width, height):
        image = cv2.resize(image, shrunk_wh, interpolation=cv2.INTER_AREA)
    if shrunk_wh != (size, size):
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)
    return image
