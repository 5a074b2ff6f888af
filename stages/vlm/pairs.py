"""Image-caption pairs as training batches.

Shape legend: N pairs, B pairs per batch, S pixels per side, L tokens, K captions per image.
"""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float32, Int64

from stages.common.formats.images import EncodedImage, normalise_pixels
from stages.models.vision_language.inputs import resize_square


def load_images(images: Iterable[EncodedImage], size: int) -> tuple[np.ndarray, list[int]]:
    """Return RGB uint8 (N, S, S, 3), S = `size`, and the image ids.

    Images are resized without keeping their aspect ratio, as in ALBEF.
    """
    squares, ids = [], []
    for image in images:
        squares.append(resize_square(image.decode(), size))
        ids.append(image.image_id)
    return np.stack(squares), ids


class PairSampler:
    """Draws batches epoch by epoch; batch k depends on the seed and k alone.

    The rest of an epoch that does not fill a batch is dropped.
    """

    def __init__(
        self, images: np.ndarray, tokens: list[torch.Tensor], batch_size: int, seed: int
    ) -> None:
        """Take images uint8 (N, S, S, 3) and, for each, token ids int64 (K, L) of its captions.

        Raises:
            ValueError: there are fewer pairs than `batch_size`.
        """
        if len(images) < batch_size:
            raise ValueError(
                f"{len(images)} image-caption pairs are fewer than vlm.batch_size = {batch_size};"
                " lower it or give more pairs"
            )
        self._images, self._tokens, self._batch_size = images, tokens, batch_size
        self._random = np.random.default_rng(seed)
        self._queue = np.empty(0, np.int64)

    def draw(self) -> tuple[Float32[torch.Tensor, "B 3 S S"], Int64[torch.Tensor, "B L"]]:
        """Return augmented images and one caption of each.

        Images are normalised per channel; L is the length of the longest caption drawn.
        """
        if len(self._queue) < self._batch_size:
            self._queue = self._random.permutation(len(self._images))
        rows, self._queue = self._queue[: self._batch_size], self._queue[self._batch_size :]
        tokens = torch.stack(
            [self._tokens[row][self._random.integers(len(self._tokens[row]))] for row in rows]
        )
        longest = int((tokens != 0).sum(1).max())
        return self._augment(self._images[rows]), tokens[:, :longest]

    def _augment(self, images: np.ndarray) -> torch.Tensor:
        """Mirror half of the images, vary contrast and colour, roll the batch by up to S / 10."""
        x, random = normalise_pixels(images), self._random
        flip = torch.from_numpy(random.random(len(x)) < 0.5)
        x[flip] = x[flip].flip(3)
        gain, shift = random.normal(0, 0.15, (2, len(x), 3, 1, 1)).astype(np.float32)
        x = x * (1 + torch.from_numpy(gain)) + torch.from_numpy(shift)
        reach = x.shape[-1] // 10
        down, right = random.integers(-reach, reach + 1, 2)
        x = torch.roll(x, (int(down), int(right)), (2, 3))
        return x.contiguous(memory_format=torch.channels_last)
