"""Random boxes."""

import numpy as np


def random_boxes(seed: int, count: int, side: int = 64) -> np.ndarray:
    """Return boxes float32 (count, 4) xyxy in a square image, at least 10 pixels wide and high."""
    generator = np.random.default_rng(seed)
    corner = generator.uniform(0, side - 12, (count, 2))
    sides = generator.uniform(10, side - corner)
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
