"""Colours and textures that fill the shapes and backgrounds of scenes.

Arrays: canvas float32 (H, W, 3), RGB in 0..255; coverage uint8 (H, W), 255 where a shape covers the
whole pixel, less on anti-aliased edges. Frame: pixels, origin top-left, x right, y down.
"""

from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

# Colours by their names in captions; RGB in 0..255.
PALETTE = {
    "red": (205, 45, 45),
    "green": (60, 160, 70),
    "blue": (50, 85, 200),
    "yellow": (225, 200, 60),
    "orange": (230, 130, 40),
    "purple": (130, 60, 165),
    "pink": (230, 130, 175),
    "brown": (125, 80, 45),
    "black": (40, 40, 45),
    "white": (228, 228, 222),
    "gray": (130, 130, 132),
    "teal": (50, 160, 165),
}
COLOUR_NAMES = tuple(PALETTE)
COLOUR_SPREAD = 14  # standard deviation of a colour's examples, per channel
COLOUR_DISTANCE = 60  # smallest sum of channel differences between two colours of one object

# The bank is fixed, like the palette, so that scenes of different seeds are samples of the same
# distribution.
BANK_SEED = 7
NUM_TEXTURES, NUM_CLOUDS = 72, 32
BANK_SIDE, BANK_MARGIN = 224, 96


def texture_bank(
    canvas_side: int,
) -> tuple[Float32[np.ndarray, "72 S S"], Float32[np.ndarray, "32 S S"]]:
    """Return fine textures and soft clouds, around 0.

    S exceeds `canvas_side` by at least 96 pixels, and each use cuts a random window. There are six
    kinds of texture, twelve of each: waves, stripes, checks, dots, blotches, grain.
    """
    return _make_bank(max(BANK_SIDE, canvas_side + BANK_MARGIN))


@lru_cache(maxsize=2)
def _make_bank(side: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(BANK_SEED)
    textures = [_texture(kind % 6, side, generator) for kind in range(NUM_TEXTURES)]
    clouds = [
        _blown_up(generator.normal(size=(cells, cells)), side)
        for cells in generator.integers(3, 14, NUM_CLOUDS)
    ]
    return np.stack(textures), np.stack(clouds)


def _texture(kind: int, side: int, generator: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:side, :side].astype(np.float32)
    angle, frequency = generator.uniform(0, np.pi), generator.uniform(0.35, 1.3)  # rad, rad / pixel
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    if kind == 0:
        pattern = np.sin(along * frequency)
    elif kind == 1:
        pattern = 0.8 * np.sign(np.sin(along * frequency))
    elif kind == 2:
        checks = np.sin(along * frequency * 0.7) * np.sin(across * frequency * 0.7)
        pattern = 0.7 * np.sign(checks)
    elif kind == 3:
        dots = np.sin(along * frequency * 0.8) * np.sin(across * frequency * 0.8) > 0.45
        pattern = 1.6 * dots - 0.6
    elif kind == 4:
        cells = side // int(generator.integers(4, 16))
        pattern = _blown_up(generator.normal(size=(cells, cells)), side)
    else:
        pattern = 0.6 * generator.normal(size=(side, side))
    return cv2.GaussianBlur(np.clip(pattern, -1.5, 1.5).astype(np.float32), (3, 3), 0.6)


def _blown_up(cells: np.ndarray, side: int) -> np.ndarray:
    return cv2.resize(cells.astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)


def cut_window(
    bank: Float32[np.ndarray, "n S S"], height: int, width: int, generator: np.random.Generator
) -> Float32[np.ndarray, "{height} {width} 1"]:
    """Return a random window of a random texture of `bank`."""
    texture = bank[generator.integers(len(bank))]
    top = int(generator.integers(texture.shape[0] - height + 1))
    left = int(generator.integers(texture.shape[1] - width + 1))
    return texture[top : top + height, left : left + width, None]


def draw_colour(generator: np.random.Generator) -> tuple[str, Float32[np.ndarray, "3"]]:
    """Return (name, RGB) of a random example of a random colour."""
    name = COLOUR_NAMES[generator.integers(len(COLOUR_NAMES))]
    rgb = np.array(PALETTE[name]) + generator.normal(0, COLOUR_SPREAD, 3)
    return name, np.clip(rgb, 8, 247).astype(np.float32)


def draw_colours(
    count: int, generator: np.random.Generator
) -> tuple[str, Float32[np.ndarray, "{count} 3"]]:
    """Return (name of the first, RGB) of colours that clearly differ."""
    first, rgb = draw_colour(generator)
    colours = [rgb]
    while len(colours) < count:
        rgb = draw_colour(generator)[1]
        if min(np.abs(rgb - other).sum() for other in colours) >= COLOUR_DISTANCE:
            colours.append(rgb)
    return first, np.stack(colours)


def paint(
    canvas: Float32[np.ndarray, "H W 3"],
    coverage: UInt8[np.ndarray, "H W"],
    rgb: Float32[np.ndarray, "3"],
    contrast: float,
    generator: np.random.Generator,
) -> None:
    """Paint a textured shape on `canvas`, in place.

    Args:
        canvas: RGB in 0..255.
        coverage: 255 where the shape covers the whole pixel.
        rgb: the colour, in 0..255.
        contrast: of the texture; 0 gives a plain colour.
        generator: chooses the texture.
    """
    left, top, width, height = cv2.boundingRect(coverage)
    if width == 0:
        return
    window = (slice(top, top + height), slice(left, left + width))
    textures = texture_bank(max(canvas.shape[:2]))[0]
    texture = cut_window(textures, height, width, generator)
    fraction = coverage[window][..., None] * np.float32(1 / 255)
    canvas[window] += fraction * (rgb * (1 + np.float32(contrast) * texture) - canvas[window])
