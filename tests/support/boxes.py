"""Boxes: random ones, and a few whose overlaps are known."""

import numpy as np

# Four boxes: a whole object, the same a little shifted, its small part, and something far away.
WHOLE_AND_PART = np.array(
    [[0, 0, 20, 20], [0, 0, 20, 18], [0, 0, 10, 10], [40, 40, 60, 60]], np.float32
)  # IoU 0-1: 0.9, 0-2: 0.25, 1-2: 100 / 360 = 0.278


def random_boxes(seed: int, count: int, side: int = 64) -> np.ndarray:
    """Return boxes float32 (count, 4) xyxy in a square image, at least 10 pixels wide and high."""
    generator = np.random.default_rng(seed)
    corner = generator.uniform(0, side - 12, (count, 2))
    sides = generator.uniform(10, side - corner)
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
