"""Draws scenes: objects on a cluttered background, with exact masks of their visible parts.

Shape legend: N objects, H = W = side. Frame: pixels, origin top-left, x right, y down. Sizes below
are pixels of a canvas with side 128, on which the recipe was tuned; `Recipe.scale` scales them.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from stages.download.sources.scenes.classes import SCENE_CLASSES
from stages.download.sources.scenes.shapes import NUM_COLOURS, Part, Variation, ellipse, rectangle
from stages.download.sources.scenes.textures import (
    cut_window,
    draw_colour,
    draw_colours,
    paint,
    texture_bank,
)

TUNED_SIDE = 128
FIXED_POINT_BITS = 4  # OpenCV draws with a precision of 1/16 pixel
MIN_AREA = 60  # square pixels on the canvas; a smaller object is replaced by another
MIN_VISIBLE = 0.55  # fraction of an object that later objects must leave visible
REPEAT_CLASS = 0.12  # probability that an object repeats the class of the one before
MAX_TRIES = 12  # objects drawn per scene, rejected ones included
DISTRACTOR_RADIUS = (5, 30)  # smallest and largest


@dataclass(frozen=True)
class Recipe:
    """What differs between full scenes and the small images of image-caption pairs.

    Attributes:
        side: of the canvas, in pixels.
        scale: pixels per pixel of the tuned canvas.
        count_probabilities: of 1, 2, … wanted objects.
        radius: smallest and largest half side of an object if at most two are wanted; log-uniform,
            so that small objects are as frequent as large ones.
        radius_in_crowd: the same if more are wanted.
        num_distractors: smallest and largest number of strokes and shapes in the background.
    """

    side: int
    scale: float
    count_probabilities: tuple[float, ...]
    radius: tuple[float, float]
    radius_in_crowd: tuple[float, float]
    num_distractors: tuple[int, int]


@dataclass(frozen=True)
class Scene:
    """One image and its ground truth.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        masks: bool (N, H, W), the visible part of each object; N >= 1.
        classes: N indices into `SCENE_CLASSES`.
        colours: N names of the objects' main colours.
    """

    image: np.ndarray
    masks: np.ndarray
    classes: tuple[int, ...]
    colours: tuple[str, ...]


def scene_recipe(side: int) -> Recipe:
    """Return the recipe of full scenes: one to four objects and much clutter."""
    scale = side / TUNED_SIDE
    return Recipe(side, scale, (0.2, 0.35, 0.3, 0.15), (10, 52), (10, 34), (3, 9))


def pair_recipe(side: int, scene_side: int) -> Recipe:
    """Return the recipe of pair images: one or two objects, at the scale of full scenes."""
    return Recipe(side, scene_side / TUNED_SIDE, (0.7, 0.3), (10, 31), (10, 24), (0, 3))


def draw_scene(recipe: Recipe, generator: np.random.Generator) -> Scene:
    """Return a scene; equal recipes and generators give equal scenes.

    Later objects lie in front. An object is rejected if too little of it is on the canvas or if it
    hides too much of another; the next one has a new class and place. Drawing ends after
    `MAX_TRIES` objects, but not before one is accepted, so N >= 1.
    """
    canvas = _background(recipe, generator)
    wanted = 1 + int(
        generator.choice(len(recipe.count_probabilities), p=recipe.count_probabilities)
    )
    low, high = recipe.radius_in_crowd if wanted > 2 else recipe.radius
    masks: list[np.ndarray] = []
    areas: list[int] = []
    classes: list[int] = []
    colours: list = []
    tries = 0
    while len(classes) < wanted and (tries < MAX_TRIES or not classes):
        tries += 1
        kind = int(generator.integers(len(SCENE_CLASSES)))
        if classes and generator.random() < REPEAT_CLASS:
            kind = classes[-1]
        radius = low * (high / low) ** generator.random() * recipe.scale
        parts = SCENE_CLASSES[kind].draw(Variation(generator))
        coverages = _place(parts, radius, recipe.side, generator)
        silhouette = np.max(coverages, axis=0) > 127
        area = int(np.count_nonzero(silhouette))
        left_visible = [mask & ~silhouette for mask in masks]
        hides = any(
            np.count_nonzero(mask) < MIN_VISIBLE * whole
            for mask, whole in zip(left_visible, areas, strict=True)
        )
        if area < MIN_AREA * recipe.scale**2 or hides:
            continue
        name, palette = draw_colours(NUM_COLOURS, generator)
        contrasts = generator.uniform(0, 0.3, NUM_COLOURS)
        for piece, coverage in zip(parts, coverages, strict=True):
            paint(canvas, coverage, palette[piece.colour], contrasts[piece.colour], generator)
        masks, areas = [*left_visible, silhouette], [*areas, area]
        classes.append(kind)
        colours.append(name)
    return Scene(_develop(canvas, generator), np.stack(masks), tuple(classes), tuple(colours))


def _place(
    parts: list[Part], radius: float, side: int, generator: np.random.Generator
) -> list[np.ndarray]:
    """Return the coverage uint8 (H, W) of each part of an object with a random place and pose."""
    angle = np.radians(generator.normal(0, 18))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = generator.normal(0, 0.1)
    stretch = np.array([[generator.uniform(0.8, 1.15), shear], [0, generator.uniform(0.85, 1.15)]])
    mirror = np.diag([-1 if generator.random() < 0.5 else 1, 1])
    to_pixels = radius * (turn @ stretch @ mirror).T
    centre = generator.uniform(0.6 * radius, side - 0.6 * radius, 2)
    return [_fill([c @ to_pixels + centre for c in piece.contours], side) for piece in parts]


def _background(recipe: Recipe, generator: np.random.Generator) -> np.ndarray:
    """Return float32 (H, W, 3): clouds of two colours, a texture, and single shapes on top."""
    side = recipe.side
    textures, clouds = texture_bank(side)
    fraction = 1 / (1 + np.exp(-2 * cut_window(clouds, side, side, generator)))
    first, second = draw_colour(generator)[1], draw_colour(generator)[1]
    canvas = first * fraction + second * (1 - fraction)
    contrast = np.float32(generator.uniform(0, 0.28))
    canvas *= 1 + contrast * cut_window(textures, side, side, generator)
    fewest, most = recipe.num_distractors
    for _ in range(generator.integers(fewest, most + 1)):
        coverage = _distractor(recipe, generator)
        paint(canvas, coverage, draw_colour(generator)[1], generator.uniform(0, 0.35), generator)
    return canvas


def _distractor(recipe: Recipe, generator: np.random.Generator) -> np.ndarray:
    """Return the coverage uint8 (H, W) of one stroke, ellipse, triangle or rectangle.

    Single shapes look like parts of objects, but never like whole objects.
    """
    kind = generator.integers(4)
    centre = generator.uniform(0, recipe.side, 2)
    radius = generator.uniform(*DISTRACTOR_RADIUS) * recipe.scale
    if kind == 0:
        bends = generator.normal(0, radius, (int(generator.integers(2, 5)), 2))
        thickness = max(1, round(generator.integers(1, 5) * recipe.scale))
        coverage = np.zeros((recipe.side, recipe.side), np.uint8)
        line = [_fixed_point(centre + bends)]
        cv2.polylines(coverage, line, False, 255, thickness, cv2.LINE_AA, FIXED_POINT_BITS)
        return coverage
    if kind == 1:
        radii = (radius, radius * generator.uniform(0.3, 1))
        contour = ellipse((0, 0), radii, rotation=generator.uniform(0, 180))
    elif kind == 2:
        contour = generator.uniform(-radius, radius, (3, 2))
    else:
        angle, flatness = generator.uniform(0, np.pi), generator.uniform(0.2, 1)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        contour = rectangle(-radius, -radius * flatness, radius, radius * flatness) @ turn
    return _fill([contour + centre], recipe.side)


def _develop(canvas: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return the image uint8 (H, W, 3): the canvas with uneven light and camera noise."""
    side = len(canvas)
    light = 1 + np.float32(0.09) * cut_window(texture_bank(side)[1], side, side, generator)
    noise = generator.standard_normal(canvas.shape, np.float32)
    return np.clip(canvas * light + np.float32(generator.uniform(1, 6)) * noise, 0, 255).astype(
        np.uint8
    )


def _fill(contours: list[np.ndarray], side: int) -> np.ndarray:
    """Return the coverage uint8 (H, W) of contours (K, 2) in pixels, by the even-odd rule."""
    coverage = np.zeros((side, side), np.uint8)
    fixed = [_fixed_point(contour) for contour in contours]
    cv2.fillPoly(coverage, fixed, 255, cv2.LINE_AA, FIXED_POINT_BITS)
    return coverage


def _fixed_point(points: np.ndarray) -> np.ndarray:
    return np.rint(points * (1 << FIXED_POINT_BITS)).astype(np.int32)
