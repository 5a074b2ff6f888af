"""Encoded images: of given pixels, of noise, and a scene whose object is known."""

from collections.abc import Sequence
from zlib import crc32

import cv2
import numpy as np

from stages.common.formats.images import EncodedImage


def noise(seed: int, *shape: int) -> np.ndarray:
    """Return noise uint8 of the shape."""
    return np.random.default_rng(seed).integers(0, 255, shape).astype(np.uint8)


def noise_jpeg(height: int, width: int, grey: bool = False, options: Sequence[int] = ()) -> bytes:
    """Return a JPEG of noise, whose seed is its height; OpenCV takes the options."""
    pixels = noise(height, height, width) if grey else noise(height, height, width, 3)
    return cv2.imencode(".jpg", pixels, options)[1].tobytes()


def png_of(width: int, height: int) -> bytes:
    """Return a grey PNG that says its size and then breaks off."""

    def chunk(content: bytes) -> bytes:
        return (len(content) - 4).to_bytes(4, "big") + content + crc32(content).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR" + size + bytes([8, 0, 0, 0, 0])) + chunk(b"IDAT")


def png_image(image_id: int, pixels_bgr: np.ndarray) -> EncodedImage:
    encoded = cv2.imencode(".png", pixels_bgr)[1].tobytes()
    return EncodedImage(image_id, f"{image_id}.png", *pixels_bgr.shape[:2], encoded)


def noise_image(image_id: int, side: int = 64) -> EncodedImage:
    """Return an image of noise, whose seed is its id."""
    return png_image(image_id, noise(image_id, side, side, 3))


def disc_scene(centre=(30, 34), radius=10, size=64):
    """A red disc on green, its activation highest at its middle, and its tight box."""
    rows, columns = np.mgrid[:size, :size]
    distance = np.hypot(rows - centre[0], columns - centre[1])
    truth = distance <= radius
    image = np.where(truth[..., None], (200, 40, 40), (30, 160, 60)).astype(np.uint8)
    activation = np.exp(-((distance / radius) ** 2)).astype(np.float32)
    row, column = centre
    box = [column - radius, row - radius, column + radius + 1, row + radius + 1]
    return image, activation[None], np.array([box], np.float32), truth
