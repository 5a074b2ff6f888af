"""Drawings of plants and animals: mushroom, bird, tree, flower, apple, fish, butterfly.

Frame and angles as in `shapes`. A class is defined by its parts and their places; colours, textures
and proportions vary within it. Later parts cover earlier ones.
"""

import numpy as np

from stages.download.sources.scenes.shapes import (
    FOURTH,
    MAIN,
    SECOND,
    THIRD,
    Part,
    Variation,
    arc_band,
    circle,
    ellipse,
    part,
    polygon,
    stroke,
    upper_half,
)


def draw_mushroom(vary: Variation) -> list[Part]:
    """A stem under a spotted cap."""
    height, width = vary.between(0.6, 0.85), vary.between(0.75, 1.0)
    stem, brim = vary.between(0.2, 0.32), vary.between(-0.05, 0.15)
    stem_contour = polygon(
        (-0.8 * stem, brim), (0.8 * stem, brim), (1.2 * stem, 0.95), (-1.2 * stem, 0.95)
    )
    underside = ellipse((0, brim), (width, 0.18), (0, 180), 14)
    cap = np.concatenate([upper_half((0, brim), (width, height)), underside])
    spots = []
    for x in np.linspace(-0.55, 0.55, vary.whole(3, 5)):
        y = brim - height * vary.between(0.25, 0.7) * (1 - 0.6 * abs(x))
        radii = (vary.between(0.08, 0.15), vary.between(0.08, 0.14))
        spots.append(part(THIRD, ellipse((x * width, y), radii, num_points=10)))
    return [part(SECOND, stem_contour), part(MAIN, cap), *spots]


def draw_bird(vary: Variation) -> list[Part]:
    """A body on two legs with head, beak, wing and tail."""
    belly, upper, lower = vary.between(0.3, 0.42), vary.between(0.1, 0.3), vary.between(0.1, 0.3)
    wing_tilt = vary.between(-30, 25)
    return [
        part(FOURTH, stroke((-0.1, 0.3), (-0.18, 0.9), 0.07)),
        part(FOURTH, stroke((0.15, 0.3), (0.12, 0.9), 0.07)),
        part(SECOND, polygon((0.35, 0), (1.0, -upper), (0.95, lower), (0.4, 0.25))),
        part(MAIN, ellipse((0, 0.1), (0.55, belly), rotation=-12)),
        part(THIRD, polygon((-0.7, -0.5), (-1.0, -0.36), (-0.68, -0.28))),
        part(MAIN, ellipse((-0.5, -0.4), (0.27, 0.26))),
        part(SECOND, ellipse((0.1, 0.05), (0.34, 0.18), rotation=wing_tilt)),
        part(FOURTH, circle((-0.57, -0.45), 0.06, 8)),
    ]


def draw_tree(vary: Variation) -> list[Part]:
    """A trunk under three triangles (fir) or four round bunches of leaves."""
    trunk = part(SECOND, polygon((-0.12, 0.1), (0.12, 0.1), (0.18, 0.98), (-0.18, 0.98)))
    if vary.either():
        layers = ((0.75, 0.45, MAIN), (0.6, 0.0, THIRD), (0.45, -0.4, MAIN))
        return [
            trunk,
            *(part(c, polygon((-half, y), (half, y), (0, y - 0.6))) for half, y, c in layers),
        ]
    bunches = (
        (-0.38, 0.0, 0.42, MAIN),
        (0.4, -0.02, 0.42, MAIN),
        (0.0, -0.45, 0.5, THIRD),
        (0.0, 0.0, 0.38, MAIN),
    )
    leaves = []
    for x, y, radius, colour in bunches:
        centre = (x + vary.between(-0.05, 0.05), y + vary.between(-0.05, 0.05))
        leaves.append(part(colour, ellipse(centre, (radius, 0.95 * radius))))
    return [trunk, *leaves]


def draw_flower(vary: Variation) -> list[Part]:
    """Five to seven petals around a centre, on a stem with one or two leaves."""
    parts = [
        part(SECOND, stroke((0, -0.2), (0, 0.98), 0.09)),
        part(SECOND, ellipse((0.22, 0.55), (0.26, 0.1), rotation=-30)),
    ]
    if vary.either():
        parts.append(part(SECOND, ellipse((-0.22, 0.7), (0.26, 0.1), rotation=30)))
    num_petals = vary.whole(5, 7)
    for petal in range(num_petals):
        angle = 360 * petal / num_petals + vary.between(0, 20)
        x, y = 0.38 * np.cos(np.radians(angle)), 0.38 * np.sin(np.radians(angle))
        contour = ellipse((x, y - 0.4), (0.27, 0.17), num_points=14, rotation=angle)
        parts.append(part(MAIN, contour))
    return [*parts, part(THIRD, circle((0, -0.4), 0.21))]


def draw_apple(vary: Variation) -> list[Part]:
    """Two round halves with a stalk, a leaf and a light spot."""
    height = vary.between(0.68, 0.8)
    stalk = stroke((0, -0.45), (vary.between(-0.1, 0.12), -0.95), 0.09)
    left = ellipse((-0.33, 0.12), (0.5, height), (90, 270), 14)
    right = ellipse((0.33, 0.12), (0.5, height), (-90, 90), 14)
    leaf = ellipse((0.28, -0.75), (0.26, 0.12), rotation=vary.between(-35, -10))
    shine_radii = (vary.between(0.1, 0.18), vary.between(0.2, 0.32))
    return [
        part(SECOND, stalk),
        part(THIRD, leaf),
        part(MAIN, np.concatenate([left, right])),
        part(FOURTH, ellipse((-0.3, 0.12), shine_radii, rotation=15)),
    ]


def draw_fish(vary: Variation) -> list[Part]:
    """A long body with a forked tail, two fins, a gill and an eye."""
    half_height, tail = vary.between(0.32, 0.5), vary.between(0.25, 0.42)
    fin = (0.15, -half_height - vary.between(0.15, 0.3))
    lower_fin = polygon((-0.1, 0.7 * half_height), (0.1, half_height + 0.2), (0.2, half_height / 2))
    return [
        part(SECOND, polygon((0.45, 0), (1.0, -tail), (0.85, 0), (1.0, tail))),
        part(SECOND, polygon((-0.2, -0.8 * half_height), fin, (0.3, -half_height / 2))),
        part(SECOND, lower_fin),
        part(MAIN, ellipse((-0.15, 0), (0.75, half_height))),
        part(THIRD, arc_band((-0.55, 0), 0.42, 0.06, (-50, 50))),
        part(FOURTH, circle((-0.62, -0.1), 0.09, 10)),
    ]


def draw_butterfly(vary: Variation) -> list[Part]:
    """Two pairs of wings with spots, on a thin body with two feelers."""
    radius = vary.between(0.42, 0.52)
    parts = []
    for side in (-1, 1):
        upper = ellipse((0.48 * side, -0.32), (radius, 0.36), rotation=-28 * side)
        lower = ellipse((0.4 * side, 0.4), (0.36, 0.3), rotation=28 * side)
        spot = ellipse((0.52 * side, -0.34), (0.17, 0.14), num_points=12)
        feeler = stroke((0, -0.5), (0.25 * side, -0.92), 0.06)
        parts += [part(MAIN, upper), part(SECOND, lower), part(THIRD, spot), part(FOURTH, feeler)]
    return [*parts, part(FOURTH, ellipse((0, 0.02), (0.12, 0.62)))]
