"""Activation maps at their own resolution."""

import numpy as np

from stages.common.geometry.activation_maps import smooth_maps


def test_a_blur_is_as_wide_along_both_sides_of_the_image():
    cells = np.zeros((1, 41, 41), np.float32)
    cells[0, 20, 20] = 1.0
    blurred = smooth_maps(cells, (205, 410), 0.05)[0]  # cells of 5 × 10 pixels, 20.5 pixels of blur
    rows, columns = blurred.sum(1), blurred.sum(0)
    place = np.arange(41) - 20
    deviations = [
        np.sqrt((weights * place**2).sum() / weights.sum()) for weights in (rows, columns)
    ]
    np.testing.assert_allclose(np.array(deviations) * [5, 10], 20.5, rtol=0.02)


def test_a_constant_map_is_zero():
    cells = np.stack([np.eye(4, dtype=np.float32), np.full((4, 4), 0.3, np.float32)])
    maps = smooth_maps(cells, (20, 30), 0.05)
    assert maps[0].min() == 0.0
    assert maps[0].max() == 1.0
    assert (maps[1] == 0).all()
    assert smooth_maps(cells[:0], (20, 30), 0.05).shape == (0, 4, 4)
