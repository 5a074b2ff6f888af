"""Shape primitives of the drawings of scenes.

Frame: that of the object, which fills about [-1, 1] × [-1, 1]; x right, y down; angles in degrees,
clockwise. A contour is a closed polygon, float64 (K, 2), of K points (x, y).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

# Indices of an object's colours; each object draws its colours, whatever its class.
MAIN, SECOND, THIRD, FOURTH = range(4)
NUM_COLOURS = 4


@dataclass(frozen=True)
class Part:
    """One painted piece. Several contours follow the even-odd rule: inner ones are holes.

    Attributes:
        colour: MAIN, SECOND, THIRD or FOURTH.
        contours: one or more.
    """

    colour: int
    contours: tuple[Float64[np.ndarray, "_ 2"], ...]


class Variation:
    """Draws the random properties of one example of a class from the scene's generator."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator

    def between(self, low: float, high: float) -> float:
        """Return a number in [low, high)."""
        return float(self._generator.uniform(low, high))

    def whole(self, low: int, high: int) -> int:
        """Return a whole number in [low, high]."""
        return int(self._generator.integers(low, high + 1))

    def either(self) -> bool:
        """Return True or False with equal probability."""
        return bool(self._generator.random() < 0.5)


def part(colour: int, *contours: Float64[np.ndarray, "_ 2"]) -> Part:
    """Return a part of one or more contours."""
    return Part(colour, contours)


def ellipse(
    centre: tuple[float, float],
    radii: tuple[float, float],
    angles: tuple[float, float] = (0, 360),
    num_points: int = 22,
    rotation: float = 0,
) -> Float64[np.ndarray, "{num_points} 2"]:
    """Return an ellipse, or its arc from the first to the second angle."""
    turn, tilt = np.radians(np.linspace(*angles, num_points)), np.radians(rotation)
    x, y = radii[0] * np.cos(turn), radii[1] * np.sin(turn)
    rotated = [x * np.cos(tilt) - y * np.sin(tilt), x * np.sin(tilt) + y * np.cos(tilt)]
    return np.stack(rotated, axis=1) + centre


def circle(
    centre: tuple[float, float], radius: float, num_points: int = 22
) -> Float64[np.ndarray, "{num_points} 2"]:
    """Return a whole circle."""
    return ellipse(centre, (radius, radius), num_points=num_points)


def upper_half(
    centre: tuple[float, float], radii: tuple[float, float]
) -> Float64[np.ndarray, "22 2"]:
    """Return the half of an ellipse above its centre, from left to right."""
    return ellipse(centre, radii, (180, 360))


def polygon(*corners: tuple[float, float]) -> Float64[np.ndarray, "K 2"]:
    """Return the contour through K corners."""
    return np.array(corners, np.float64)


def rectangle(left: float, top: float, right: float, bottom: float) -> Float64[np.ndarray, "4 2"]:
    """Return an upright rectangle."""
    return polygon((left, top), (right, top), (right, bottom), (left, bottom))


def stroke(
    start: tuple[float, float], end: tuple[float, float], width: float
) -> Float64[np.ndarray, "4 2"]:
    """Return a straight line of the given width."""
    first, last = np.array(start, np.float64), np.array(end, np.float64)
    along = (last - first) / np.hypot(*(last - first))
    side = np.array([-along[1], along[0]]) * width / 2
    return np.stack([first + side, last + side, last - side, first - side])


def ring(
    centre: tuple[float, float], radii: tuple[float, float], width: float
) -> list[Float64[np.ndarray, "22 2"]]:
    """Return the outer and the inner contour of a ring."""
    inner = (radii[0] - width, radii[1] - width)
    return [ellipse(centre, radii), ellipse(centre, inner)]


def arc_band(
    centre: tuple[float, float], radius: float, width: float, angles: tuple[float, float]
) -> Float64[np.ndarray, "24 2"]:
    """Return a band between two arcs, of `radius` and of `radius` - `width`."""
    outer = ellipse(centre, (radius, radius), angles, 12)
    inner = ellipse(centre, (radius - width, radius - width), angles[::-1], 12)
    return np.concatenate([outer, inner])
