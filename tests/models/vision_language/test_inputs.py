"""The square input of the vision-language models."""

import numpy as np

from stages.models.vision_language.inputs import resize_square


def test_a_side_that_shrinks_is_averaged_even_if_the_other_grows():
    stripes = np.zeros((8, 64, 3), np.uint8)
    stripes[:, 1::4] = 200  # every fourth column
    for image in (stripes, stripes.transpose(1, 0, 2).copy()):
        assert (resize_square(image, 16) == 50).all()


def test_an_image_of_that_size_keeps_its_pixels():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    assert np.array_equal(resize_square(image, 16), image)
