"""Images and proposals for a training of many epochs, read from disk a block at a time.

A block is a row group of an image shard, at most 8 images. An epoch takes the blocks in a new
random order and mixes the images of `MIXED_BLOCKS` consecutive ones, so each block is read about
once per epoch. Memory holds the images of `KEPT_BLOCKS` blocks, at most 1,024, however large the
data set; only the index grows with it, by about 60 bytes per image. The order is a pure function
of seed and epoch, so a resumed training needs no state of it.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float32, Int64

from stages.common.formats.images import SCHEMA, EncodedImage, count_images
from stages.common.formats.tables import boxes_by_image
from stages.common.runtime.seeding import numpy_generator

MIXED_BLOCKS = 64
KEPT_BLOCKS = 2 * MIXED_BLOCKS  # a batch may take images from two mixes

Example = tuple[EncodedImage, Float32[np.ndarray, "_ 4"]]


class Block(NamedTuple):
    """Where the images of one row group and their proposals are stored."""

    shard: int  # index of the two files
    row_group: int  # of the image shard
    image_ids: Int64[np.ndarray, " n"]  # the chosen images
    proposal_groups: range  # row groups of the proposal table that hold their proposals


class ImageStream:
    """Random access to training images and their proposals; the last blocks used are kept."""

    def __init__(
        self, images: Sequence[Path], proposals: Sequence[Path], chosen: Collection[int]
    ) -> None:
        """Index the `chosen` images of the image shards and their tables of proposals.

        Raises:
            ValueError: a chosen image has no proposals, or the shards hold no chosen image.
        """
        self._images = [pq.ParquetFile(path) for path in images]
        self._proposals = [pq.ParquetFile(path) for path in proposals]
        self._blocks = [
            block
            for shard, path in enumerate(proposals)
            for block in self._index(shard, path, set(chosen))
        ]
        sizes = [len(block.image_ids) for block in self._blocks]
        if not sum(sizes):
            raise ValueError(f"{[*map(str, images)]}: they hold none of the chosen images")
        self._starts = np.cumsum([0, *sizes])
        self._kept: OrderedDict[int, dict[int, Example]] = OrderedDict()
        self._order: tuple[int, int, np.ndarray] | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return int(self._starts[-1])

    def batch(self, step: int, batch_size: int, seed: int) -> list[Example]:
        """Return the images of 0-based `step`, each with its proposals."""
        places = range(step * batch_size, (step + 1) * batch_size)
        numbers = [self._epoch(place // len(self), seed)[place % len(self)] for place in places]
        return [self._example(int(number)) for number in numbers]

    def _epoch(self, epoch: int, seed: int) -> np.ndarray:
        if self._order is None or self._order[:2] != (epoch, seed):
            self._order = epoch, seed, epoch_order(self._starts, epoch, seed)
        return self._order[2]

    def _example(self, number: int) -> Example:
        index = int(np.searchsorted(self._starts, number, side="right")) - 1
        image_id = int(self._blocks[index].image_ids[number - self._starts[index]])
        if index not in self._kept:
            self._kept[index] = self._read(self._blocks[index])
            while len(self._kept) > KEPT_BLOCKS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(index)
        return self._kept[index][image_id]

    def _read(self, block: Block) -> dict[int, Example]:
        rows = self._images[block.shard].read_row_group(block.row_group).to_pylist()
        table = self._proposals[block.shard].read_row_groups(list(block.proposal_groups))
        boxes, wanted = boxes_by_image(table), set(block.image_ids.tolist())
        return {
            row["image_id"]: (EncodedImage(*map(row.get, SCHEMA.names)), boxes[row["image_id"]])
            for row in rows
            if row["image_id"] in wanted
        }

    def _index(self, shard: int, path: Path, chosen: set[int]) -> list[Block]:
        groups: dict[int, tuple[int, int]] = {}  # image_id → its first and last row group
        for group, ids in enumerate(_ids_by_group(self._proposals[shard])):
            for image_id in np.unique(ids).tolist():
                groups[image_id] = groups.get(image_id, (group, group))[0], group
        blocks = []
        for row_group, ids in enumerate(_ids_by_group(self._images[shard])):
            ids = np.array([image_id for image_id in ids.tolist() if image_id in chosen], np.int64)
            missing = [image_id for image_id in ids.tolist() if image_id not in groups]
            if missing:
                raise ValueError(f"{path}: no row for image {missing[0]}; rerun `proposals`")
            if len(ids):
                first = min(groups[image_id][0] for image_id in ids.tolist())
                last = max(groups[image_id][1] for image_id in ids.tolist())
                blocks.append(Block(shard, row_group, ids, range(first, last + 1)))
        return blocks


def read_image_ids(images: Iterable[Path]) -> Iterator[int]:
    """Yield the image ids of image shards without reading the images."""
    for path in images:
        count_images(path)  # raises an error that names a missing shard
        for ids in _ids_by_group(pq.ParquetFile(path)):
            yield from ids.tolist()


def _ids_by_group(file: pq.ParquetFile) -> Iterator[np.ndarray]:
    for group in range(file.num_row_groups):
        yield file.read_row_group(group, columns=["image_id"])["image_id"].to_numpy()


def epoch_order(starts: Int64[np.ndarray, " _"], epoch: int, seed: int) -> Int64[np.ndarray, " N"]:
    """Return the numbers of all images in the order of one epoch.

    Args:
        starts: number of each block's first image, then the number of all images; ascending.
        epoch: 0-based.
        seed: the experiment's seed.
    """
    generator = numpy_generator(seed, "wspn epoch", epoch)
    blocks = generator.permutation(len(starts) - 1)
    mixes = np.split(blocks, range(MIXED_BLOCKS, len(blocks), MIXED_BLOCKS))
    ordered = []
    for mix in mixes:
        numbers = np.concatenate([np.arange(starts[k], starts[k + 1]) for k in mix])
        ordered.append(generator.permutation(numbers))
    return np.concatenate(ordered)
