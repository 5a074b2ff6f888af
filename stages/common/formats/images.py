"""Image shards: Parquet files of encoded images, streamed a few images at a time.

Columns: image_id int64, file_name string, height int32, width int32, bytes binary (the encoded
image). Decoded arrays are RGB uint8 (H, W, 3), origin top-left, x to the right, y down.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8

from stages.common.runtime.storage import replace_file

if TYPE_CHECKING:
    import torch

# Images per row group, the unit of reading and writing. A training that visits images at random
# reads this many to get one: 1.3 MB of COCO.
ROW_GROUP = 8

SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("file_name", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("bytes", pa.binary()),
    ]
)

# Limit of longer over shorter side. Networks resize the longer side to 32 pixels or more, so the
# shorter one keeps more than one pixel; a thinner image could be resized to nothing.
LARGEST_ASPECT = 25

# Mean and standard deviation per channel of natural images in 0..1, as in CLIP and ALBEF.
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


class BrokenImageError(ValueError):
    """An image that cannot be used.

    Attributes:
        reason: what is wrong, without the image's name.
    """

    def __init__(self, name: str, reason: str) -> None:
        """Make the error of the image called `name`."""
        super().__init__(name, reason)  # another process rebuilds it from these
        self.reason = reason

    def __str__(self) -> str:
        """Return the image's name and what is wrong with it."""
        return f"{self.args[0]}: {self.reason}"


@dataclass(frozen=True)
class EncodedImage:
    """One encoded image of a shard."""

    image_id: int
    file_name: str
    height: int
    width: int
    encoded: bytes

    def decode(self) -> UInt8[np.ndarray, "H W 3"]:
        """Return RGB, see `decode_image`."""
        return decode_image(self.encoded, self.file_name)


def decode_image(encoded: bytes, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """Return RGB; grey becomes RGB, alpha is dropped, EXIF rotation is ignored.

    COCO's boxes and masks are in the stored frame, so the rotation tag must not turn the image.

    Raises:
        BrokenImageError: the bytes are not an image, or the image is too large or too thin.
    """
    return _decode(encoded, name, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def decode_upright(encoded: bytes, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """Return RGB, rotated as the EXIF tag says; otherwise as `decode_image`.

    For images without annotations, such as a phone's.
    """
    return _decode(encoded, name, cv2.IMREAD_COLOR_RGB)


def _decode(encoded: bytes, name: str, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags) if encoded else None
    except cv2.error as error:  # for example more than 2^30 pixels
        raise BrokenImageError(name, f"OpenCV refuses it: {' '.join(error.err.split())}") from None
    if image is None:
        raise BrokenImageError(name, f"cannot be decoded as an image ({len(encoded)} bytes)")
    height, width = image.shape[:2]
    if max(height, width) > LARGEST_ASPECT * min(height, width):
        raise BrokenImageError(
            name, f"is {width} × {height} pixels, thinner than 1 : {LARGEST_ASPECT}; crop it"
        )
    return image


def normalise_pixels(images: UInt8[np.ndarray, "N H W 3"]) -> "torch.Tensor":
    """Normalise RGB by PIXEL_MEAN and PIXEL_STD to float32 (N, 3, H, W)."""
    import torch  # here because it takes 3 s, and a stage without a network does not need it

    mean, std = torch.tensor(PIXEL_MEAN) * 255, torch.tensor(PIXEL_STD) * 255
    return ((torch.from_numpy(np.ascontiguousarray(images)) - mean) / std).permute(0, 3, 1, 2)


def write_images(path: Path, images: Iterable[EncodedImage]) -> int:
    """Write one shard as the images come; return the number of images."""
    count = 0
    rows: list[tuple[int, str, int, int, bytes]] = []

    def flush(writer: pq.ParquetWriter) -> None:
        if rows:
            table = [dict(zip(SCHEMA.names, row, strict=True)) for row in rows]
            writer.write_table(pa.Table.from_pylist(table, SCHEMA), row_group_size=ROW_GROUP)
            rows.clear()

    with (
        replace_file(path) as partial,
        pq.ParquetWriter(partial, SCHEMA, compression="none") as writer,
    ):
        for image in images:
            rows.append(
                (
                    image.image_id,
                    image.file_name,
                    image.height,
                    image.width,
                    image.encoded,
                )
            )
            count += 1
            if len(rows) == ROW_GROUP:
                flush(writer)
        flush(writer)
    return count


def count_images(path: Path) -> int:
    """Return the number of images of a shard without reading them.

    Raises:
        FileNotFoundError: the shard does not exist.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.absolute()}: no such image shard; `dvc repro` makes it")
    return pq.read_metadata(path).num_rows


def read_images(*paths: Path) -> Iterator[EncodedImage]:
    """Yield the images of one or more shards in file order, with one row group in memory.

    Raises:
        FileNotFoundError: a shard does not exist.
    """
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path.absolute()}: no such image shard; `dvc repro` makes it")
        for batch in pq.ParquetFile(path).iter_batches(ROW_GROUP):
            for row in batch.to_pylist():
                yield EncodedImage(
                    row["image_id"], row["file_name"], row["height"], row["width"], row["bytes"]
                )
