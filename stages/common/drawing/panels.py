"""The panels of a montage: an image with its activation map, masks, outlines and boxes.

A panel is square, RGB uint8 (P, P, 3). The image of H × W pixels is scaled so that its longer side
is P, and centred. Enlarging a small image also smooths its masks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Float64, Num, UInt8
from matplotlib.colors import hsv_to_rgb
from numpy.typing import ArrayLike

from stages.common.geometry.masks import decode_mask

GROUND = 246  # grey of the letterbox, just off the sheet's white
RIM = (20, 20, 20)  # around coloured lines, to set them off from objects of the same colour
GOLDEN_RATIO = 0.618033988749895  # step on the hue circle that keeps successive classes apart

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Tag:
    """A text on a coloured ground; (x, y) is the preferred place of its lower left corner."""

    text: str
    x: float
    y: float
    colour: Colour


@dataclass(frozen=True)
class Panel:
    """Pixels, RGB, and the tags to draw on them."""

    pixels: UInt8[np.ndarray, "H W 3"]
    tags: list[Tag] = field(default_factory=list)


def class_colour(index: int) -> Colour:
    """Return the RGB colour of class `index`, bright enough to show on a photograph."""
    saturation, value = ((0.80, 0.98), (0.95, 0.80), (0.60, 1.00))[index % 3]
    rgb = hsv_to_rgb([(0.02 + index * GOLDEN_RATIO) % 1.0, saturation, value])
    return tuple(round(channel * 255) for channel in rgb)


def _place(image_hw: tuple[int, int], side: int) -> tuple[float, int, int, int, int]:
    """Return (scale, left, top, width, height) of an image in a panel of `side` pixels."""
    height, width = image_hw
    scale = side / max(height, width)
    shown_height, shown_width = max(round(height * scale), 1), max(round(width * scale), 1)
    return scale, (side - shown_width) // 2, (side - shown_height) // 2, shown_width, shown_height


def _enlarge(values: np.ndarray, image_hw: tuple[int, int], side: int, fill: float) -> np.ndarray:
    _, left, top, width, height = _place(image_hw, side)
    shrinks = values.shape[0] > height
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    panel = np.full((side, side, *values.shape[2:]), fill, values.dtype)
    panel[top : top + height, left : left + width] = cv2.resize(
        values, (width, height), interpolation=method
    )
    return panel


def show_image(image: UInt8[np.ndarray, "H W 3"], side: int) -> UInt8[np.ndarray, "P P 3"]:
    """Return the panel of an RGB image; `side` is P."""
    return _enlarge(image, image.shape[:2], side, GROUND)


def show_heat(
    image: UInt8[np.ndarray, "H W 3"], heat: Float[np.ndarray, "h w"], side: int
) -> UInt8[np.ndarray, "P P 3"]:
    """Return the panel of an image under a map in [0, 1]; 0 is transparent."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    calm = show_image((0.35 * image + 0.65 * grey).astype(np.uint8), side).astype(np.float32)
    shown = np.clip(_enlarge(heat.astype(np.float32), image.shape[:2], side, 0.0), 0, 1)
    colours = matplotlib.colormaps["inferno"](0.15 + 0.85 * shown)[..., :3] * 255
    weight = (0.9 * shown**0.7)[..., None]
    return np.rint(calm * (1 - weight) + colours * weight).clip(0, 255).astype(np.uint8)


def paint_mask(
    pixels: UInt8[np.ndarray, "P P 3"], mask: Bool[np.ndarray, "H W"], colour: Colour
) -> UInt8[np.ndarray, "P P 3"]:
    """Return a copy of the panel with a mask of the image tinted and outlined."""
    side = pixels.shape[0]
    shown = _enlarge(mask.astype(np.float32), mask.shape, side, 0.0) > 0.5
    painted = pixels.copy()
    painted[shown] = np.rint(0.55 * pixels[shown] + 0.45 * np.array(colour)).astype(np.uint8)
    contours, _ = cv2.findContours(shown.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(painted, contours, -1, RIM, 3, cv2.LINE_AA)
    return cv2.drawContours(painted, contours, -1, colour, 2, cv2.LINE_AA)


def paint_box(
    pixels: UInt8[np.ndarray, "P P 3"],
    box_xyxy: Num[np.ndarray, "4"],
    image_hw: tuple,
    colour: Colour,
) -> None:
    """Draw a box of the image, in its pixels, on the panel in place."""
    x0, y0, x1, y1 = np.rint(panel_box(box_xyxy, image_hw, pixels.shape[0])).astype(int).tolist()
    corners = (x0, y0), (max(x1 - 1, x0), max(y1 - 1, y0))
    cv2.rectangle(pixels, *corners, RIM, 4, cv2.LINE_AA)
    cv2.rectangle(pixels, *corners, colour, 2, cv2.LINE_AA)


def panel_box(
    box_xyxy: ArrayLike, image_hw: tuple[int, int], side: int
) -> Float64[np.ndarray, "4"]:
    """Return a box of the image, corners in pixels, in pixels of the panel."""
    scale, left, top, *_ = _place(image_hw, side)
    return np.asarray(box_xyxy, np.float64) * scale + np.array([left, top, left, top])


def show_instances(
    image: UInt8[np.ndarray, "H W 3"],
    instances: Sequence[dict],
    words: Mapping[int, str],
    side: int,
) -> Panel:
    """Return the panel of an image with its instances, the first instance on top.

    Args:
        image: RGB.
        instances: COCO annotations or results, best first; a score is shown beside the class.
        words: the class name of each category id; its position chooses the colour.
        side: P.
    """
    image_hw, places = image.shape[:2], {key: place for place, key in enumerate(words)}
    pixels, tags = show_image(image, side), []
    for instance in reversed(instances):
        colour = class_colour(places[instance["category_id"]])
        pixels = paint_mask(pixels, decode_mask(instance["segmentation"], image_hw), colour)
    for instance in instances:
        key = instance["category_id"]
        certainty = f" {instance['score']:.2f}" if "score" in instance else ""
        x, y, *_ = panel_box([*instance["bbox"][:2], 0, 0], image_hw, side)
        tags.append(Tag(f"{words[key]}{certainty}", x, y, class_colour(places[key])))
    return Panel(pixels, tags)
