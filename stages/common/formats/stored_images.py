"""Images that stay in their shards until they are decoded, in any order.

Trainings visit images at random. What is read is kept up to a number of bytes, so a small data
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

from stages.common.formats.images import SCHEMA, EncodedImage, decode_image

KEPT_BYTES = 512 * 2**20
SAMPLE_BYTES = 64 * 2**20  # of a sample, which is gone through once
BYTES_COLUMN = "bytes"


@dataclass(frozen=True)
class StoredImage:
    """One image of `StoredImages`, as `images.EncodedImage` but for its bytes."""

    image_id: int
    file_name: str
    height: int
    width: int
    source: "StoredImages"
    place: tuple[int, int, int]  # shard, row group, row

    def decode(self) -> np.ndarray:
        """Return RGB uint8 (H, W, 3)."""
        return decode_image(self.source.read(self.place), self.file_name)


class StoredImages:
    """The images of image shards; iterating reads all but their bytes. Threads may share it."""

    def __init__(self, *paths: Path, kept_bytes: int = KEPT_BYTES) -> None:
        """Keep up to `kept_bytes` of what is read, and the row group read last in any case."""
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{missing[0].absolute()}: no such image shard; `dvc repro` makes it"
            )
        self._paths, self._kept_bytes = paths, kept_bytes
        # A footer lists every row group: to read it for each costs 1 ms of 7,000 images and 4 of
        # 27,000, to open the file without it 0.1. Threads may share it, which an open file they
        # may not.
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
        """Return how many bytes are kept now."""
        return sum(group.nbytes for group in self._kept.values())


AnyImage = EncodedImage | StoredImage


def find_images(image_ids: Collection[int], *paths: Path) -> list[StoredImage]:
    """Return some images of image shards, in file order.

    A row group is read when an image of it is decoded, and no other one is: 150 images of 100
    thousand are in 1.5 GB of 16.
    """
    stored = StoredImages(*paths, kept_bytes=SAMPLE_BYTES)
    return [image for image in stored if image.image_id in image_ids]
