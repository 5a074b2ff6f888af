"""Drawings of things people make: lamp, cup, key, house, boat, guitar, hat, umbrella, car, clock.

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
    rectangle,
    ring,
    stroke,
    upper_half,
)


def draw_lamp(vary: Variation) -> list[Part]:
    """A shade with a lower edge, on a stand with a foot and sometimes a bulge."""
    top, bottom, edge = vary.between(0.2, 0.4), vary.between(0.55, 0.85), vary.between(-0.3, -0.05)
    stand = part(SECOND, stroke((0, edge), (0, 0.85), vary.between(0.08, 0.14)))
    foot = part(SECOND, upper_half((0, 0.9), (vary.between(0.35, 0.55), 0.16)))
    bulge = [part(THIRD, ellipse((0, 0.35), (0.2, 0.22)))] if vary.either() else []
    shade = polygon((-top, -0.95), (top, -0.95), (bottom, edge), (-bottom, edge))
    border = rectangle(-bottom, edge - 0.14, bottom, edge)
    return [stand, *bulge, foot, part(MAIN, shade), part(THIRD, border)]


def draw_cup(vary: Variation) -> list[Part]:
    """A body with a narrow foot and an open top, a ring as handle, and sometimes a stripe."""
    foot, height = vary.between(0.38, 0.55), vary.between(0.55, 0.8)
    handle = ring((0.66, 0), (0.34, vary.between(0.3, 0.42)), 0.13)
    body = polygon((-0.65, -height), (0.65, -height), (foot, height), (-foot, height))
    stripe = polygon((-0.62, -0.1), (0.62, -0.1), (0.58, 0.15), (-0.58, 0.15))
    return [
        part(SECOND, *handle),
        part(MAIN, body),
        *([part(THIRD, stripe)] if vary.either() else []),
        part(FOURTH, ellipse((0, -height), (0.65, 0.15))),
    ]


def draw_key(vary: Variation) -> list[Part]:
    """A shaft with two or three teeth and a ring to hold it by."""
    radius, width = vary.between(0.3, 0.42), vary.between(0.12, 0.17)
    teeth = (0.9, 0.65) if vary.either() else (0.92, 0.72, 0.52)
    bow = ring((-0.6, 0), (radius, radius), vary.between(0.13, 0.18))
    return [
        part(MAIN, stroke((-0.4, 0), (1.0, 0), width)),
        *(part(MAIN, rectangle(x - 0.07, 0, x + 0.07, vary.between(0.24, 0.4))) for x in teeth),
        part(SECOND if vary.either() else MAIN, *bow),
    ]


def draw_house(vary: Variation) -> list[Part]:
    """Walls under a pointed roof, a door, one or two windows, sometimes a chimney."""
    half, eaves = vary.between(0.6, 0.8), vary.between(-0.2, 0.05)
    chimney = [part(THIRD, rectangle(0.3, -0.85, 0.5, -0.2))] if vary.either() else []
    left_window = rectangle(-half + 0.12, eaves + 0.18, -half + 0.38, eaves + 0.46)
    right_window = rectangle(half - 0.38, eaves + 0.18, half - 0.12, eaves + 0.46)
    return [
        *chimney,
        part(MAIN, rectangle(-half, eaves, half, 0.9)),
        part(SECOND, polygon((-half - 0.18, eaves), (half + 0.18, eaves), (0, -0.95))),
        part(THIRD, rectangle(-0.15, 0.35, 0.17, 0.9)),
        part(FOURTH, left_window),
        *([part(FOURTH, right_window)] if vary.either() else []),
    ]


def draw_boat(vary: Variation) -> list[Part]:
    """A hull with a stripe, a mast, and one or two sails."""
    keel, depth = vary.between(0.4, 0.6), vary.between(0.35, 0.5)
    hull = polygon((-1.0, 0.4), (1.0, 0.4), (keel, 0.4 + depth), (-keel, 0.4 + depth))
    sail = polygon((0.07, -0.9), (vary.between(0.6, 0.8), 0.3), (0.07, 0.3))
    back_sail = polygon((-0.07, -0.7), (-0.6, 0.3), (-0.07, 0.3))
    return [
        part(FOURTH, stroke((0, -0.95), (0, 0.5), 0.08)),
        part(SECOND, sail),
        part(MAIN, hull),
        *([part(THIRD, back_sail)] if vary.either() else []),
        part(THIRD, polygon((-0.92, 0.47), (0.92, 0.47), (0.85, 0.57), (-0.85, 0.57))),
    ]


def draw_guitar(vary: Variation) -> list[Part]:
    """A waisted body with sound hole and bridge, a neck and a head."""
    upper, lower = vary.between(0.33, 0.4), vary.between(0.44, 0.55)
    head = polygon((-0.13, -0.98), (0.13, -0.98), (0.1, -0.72), (-0.1, -0.72))
    return [
        part(SECOND, stroke((0, -0.1), (0, -0.8), 0.14)),
        part(THIRD, head),
        part(MAIN, ellipse((0, 0.12), (upper, 0.3))),
        part(MAIN, ellipse((0, 0.58), (lower, 0.38))),
        part(FOURTH, circle((0, 0.3), 0.15, 14)),
        part(THIRD, rectangle(-0.2, 0.66, 0.2, 0.75)),
    ]


def draw_hat(vary: Variation) -> list[Part]:
    """A crown with a band on a wide brim."""
    half, height, brim = vary.between(0.4, 0.55), vary.between(0.75, 0.95), 0.35
    top = upper_half((0, 0.3 - height), (half * vary.between(0.8, 1.0), 0.2))
    band_half = 0.98 * half
    band = polygon((-band_half, brim - 0.28), (band_half, brim - 0.28), (half, brim), (-half, brim))
    return [
        part(MAIN, ellipse((0, brim), (1.0, vary.between(0.18, 0.26)))),
        part(MAIN, np.concatenate([top, polygon((half, brim), (-half, brim))])),
        part(SECOND, band),
    ]


def draw_umbrella(vary: Variation) -> list[Part]:
    """A dome of three to five segments with a scalloped edge, on a stick with a crook."""
    num_segments, width = vary.whole(3, 5), vary.between(0.8, 1.0)
    height, edge = vary.between(0.55, 0.75), vary.between(-0.15, 0.0)
    ends = np.linspace(-width, width, num_segments + 1)
    centres = (ends[1:] + ends[:-1]) / 2
    radii = (width / num_segments, 0.12)
    scallops = [ellipse((x, edge), radii, (360, 180), 8) for x in centres[::-1]]
    dome = np.concatenate([upper_half((0, edge), (width, height)), *scallops])
    top = polygon((0, edge - height))
    segments = [
        part(SECOND, np.concatenate([top, ellipse((x, edge), radii, (180, 360), 8)]))
        for x in centres[::2]
    ]
    return [
        part(THIRD, stroke((0, edge - height - 0.1), (0, 0.75), 0.1)),
        part(THIRD, arc_band((0.16, 0.72), 0.2, 0.09, (0, 180))),
        part(MAIN, dome),
        *segments,
    ]


def draw_car(vary: Variation) -> list[Part]:
    """A low body on two wheels with hubs, and a cabin with two windows."""
    roof = vary.between(0.35, 0.5)
    cabin = polygon((-0.55, -0.1), (-roof, -0.5), (roof, -0.5), (0.65, -0.1))
    body = polygon((-0.95, 0.3), (-0.95, 0), (-0.8, -0.12), (0.8, -0.12), (0.98, 0.05), (0.98, 0.3))
    glass = 0.85 * roof
    front = polygon((-0.42, -0.14), (-glass, -0.41), (-0.04, -0.41), (-0.04, -0.14))
    back = polygon((0.05, -0.14), (0.05, -0.41), (glass, -0.41), (0.5, -0.14))
    return [
        part(SECOND if vary.either() else MAIN, cabin),
        part(MAIN, body),
        part(THIRD, front),
        part(THIRD, back),
        *(part(FOURTH, circle((x, 0.3), 0.23)) for x in (-0.52, 0.52)),
        *(part(SECOND, circle((x, 0.3), 0.1, 10)) for x in (-0.52, 0.52)),
    ]


def draw_clock(vary: Variation) -> list[Part]:
    """An alarm clock: a round case with a face and two hands, two bells, two feet."""
    hands = []
    for length, width in ((0.45, 0.09), (0.3, 0.11)):
        angle = vary.between(0, 2 * np.pi)
        tip = (length * np.cos(angle), 0.05 + length * np.sin(angle))
        hands.append(part(THIRD, stroke((0, 0.05), tip, width)))
    return [
        *(part(THIRD, stroke((0.4 * s, 0.5), (0.6 * s, 0.95), 0.13)) for s in (-1, 1)),
        *(part(SECOND, ellipse((0.48 * s, -0.68), (0.27, 0.2), rotation=35 * s)) for s in (-1, 1)),
        part(MAIN, circle((0, 0.05), 0.72, 28)),
        part(FOURTH, circle((0, 0.05), 0.56, 28)),
        *hands,
    ]
