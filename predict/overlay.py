"""Paints instances on an image, for people to look at."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from stages.common.drawing.montage import draw_panel
from stages.common.drawing.panels import Panel, panel_box, show_instances
from stages.common.runtime.storage import replace_file

SHORTEST, LONGEST = 640, 1600  # pixels of the longer side, so that words are legible
WRITTEN = (".jpg", ".jpeg", ".png")  # formats of overlays


def draw_overlay(
    image: UInt8[np.ndarray, "_ _ 3"], results: Sequence[dict], words: Mapping[int, str]
) -> UInt8[np.ndarray, "_ _ 3"]:
    """Return RGB in the image's aspect ratio, its longer side 640 to 1600 pixels.

    Args:
        image: RGB.
        results: the image's COCO results, best first; the best is painted last.
        words: the name of each category id.
    """
    image_hw = image.shape[:2]
    side = int(np.clip(max(image_hw), SHORTEST, LONGEST))
    panel = show_instances(image, results, words, side)
    x0, y0, x1, y1 = np.rint(panel_box([0, 0, *image_hw[::-1]], image_hw, side)).astype(int)
    tags = [replace(tag, x=tag.x - x0, y=tag.y - y0) for tag in panel.tags]
    return draw_panel(Panel(panel.pixels[y0:y1, x0:x1], tags))  # without the letterbox


def overlay_name(name: str) -> str:
    """Return the file name of an image's overlay: the image's own, or that with .jpg added."""
    return name if Path(name).suffix.lower() in WRITTEN else f"{name}.jpg"


def write_overlay(path: Path, pixels: UInt8[np.ndarray, "H W 3"]) -> None:
    """Write RGB in the format of the path's suffix, one of `WRITTEN`."""
    _, encoded = cv2.imencode(path.suffix.lower(), np.ascontiguousarray(pixels[..., ::-1]))
    with replace_file(path) as partial:
        partial.write_bytes(encoded.tobytes())
