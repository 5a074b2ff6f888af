"""Images that stay in their shards until they are decoded, for random access.

Trainings visit images at random. Encoded images are cached up to a number of bytes, so a small data
set is read once and a large one takes no more memory than that.
"""

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8

from stages.common.formats.images import SCHEMA, EncodedImage, decode_image

KEPT_BYTES = 512 * 2**20
SAMPLE_BYTES = 64 * 2**20  # cache for a sample of images, each of which is read once
BYTES_COLUMN = "bytes"


@dataclass(frozen=True)
class StoredImage:
    """One image of `StoredImages`: an `images.EncodedImage` whose bytes are still in the shard."""

    image_id: int
    file_name: str
    height: int
    width: int
    source: "StoredImages"
    place: tuple[int, int, int]  # shard, row group, row

    def decode(self) -> UInt8[np.ndarray, "H W 3"]:
        """Return RGB uint8 (H, W, 3)."""
        return decode_image(self.source.read(self.place), self.file_name)


class StoredImages:
    """The images of image shards; iterating reads all but their bytes. Safe to share by threads."""

    def __init__(self, *paths: Path, kept_bytes: int = KEPT_BYTES) -> None:
        """Open the shards; cache up to `kept_bytes`, and the last row group in any case.

        Raises:
            FileNotFoundError: a shard does not exist.
        """
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{missing[0].absolute()}: no such image shard; `dvc repro` makes it"
            )
        self._paths, self._kept_bytes = paths, kept_bytes
        # Opening a shard reads its footer, which lists all row groups: 1 ms for 7,000 images, 4 ms
        # for 27,000. With the footer given it takes 0.1 ms. Threads may share a footer, but not an
        # open file.
        self._footers = [pq.read_metadata(path) for path in paths]
        self._kept: OrderedDict[tuple[int, int], pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[StoredImage]:
        """Yield every image, in file order."""
        facts = [name for name in SCHEMA.names if name != BYTES_COLUMN]
        for shard in range(len(self._paths)):
            with self._open(shard) as file:
                for group in range(file.num_row_groups):
                    rows = file.read_row_group(group, columns=facts).to_pylist()
                    for row, known in enumerate(rows):
                        yield StoredImage(**known, source=self, place=(shard, group, row))

    def read(self, place: tuple[int, int, int]) -> bytes:
        """Return the encoded image at (shard, row group, row)."""
        key, row = place[:2], place[2]
        with self._lock:
            group = self._kept.get(key)
            if group is not None:
                self._kept.move_to_end(key)
        if group is None:
            with self._open(key[0]) as file:
                group = file.read_row_group(key[1], columns=[BYTES_COLUMN])[BYTES_COLUMN]
            with self._lock:
                self._kept[key] = group
                while len(self._kept) > 1 and self.kept_bytes > self._kept_bytes:
                    self._kept.popitem(last=False)
        return group[row].as_py()

    def _open(self, shard: int) -> pq.ParquetFile:
        return pq.ParquetFile(self._paths[shard], metadata=self._footers[shard])

    @property
    def kept_bytes(self) -> int:
        """Return the number of bytes in the cache."""
        return sum(group.nbytes for group in self._kept.values())


AnyImage = EncodedImage | StoredImage


def find_images(image_ids: Collection[int], *paths: Path) -> list[StoredImage]:
    """Return the images of image shards with these ids, in file order.

    A row group is read only when one of its images is decoded: 150 images out of 100 thousand lie
    in 1.5 GB out of 16.
    """
    stored = StoredImages(*paths, kept_bytes=SAMPLE_BYTES)
    return [image for image in stored if image.image_id in image_ids]
