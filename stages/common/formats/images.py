"""Image shards: one Parquet file of encoded images, streamed a few at a time.

Columns: image_id int64, file_name string, height int32, width int32, bytes binary (JPEG or PNG as
the source had it). Arrays are RGB uint8 (H, W, 3), origin top-left, x to the right, y down.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.common.runtime.storage import replace_file

if TYPE_CHECKING:
    import torch

# Images that are written and read at once. A training that visits images at random reads this
# many for one: 1.3 MB of COCO's.
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

# Longer side over shorter side of an image. No network sees a longer side under 32 pixels, so the
# shorter one keeps more than one; what is thinner would be resized to nothing.
LARGEST_ASPECT = 25

# Per-channel mean and standard deviation of natural images in 0..1, as CLIP and ALBEF use them.
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


class BrokenImageError(ValueError):
    """An image that nothing here can look at.

    Attributes:
        reason: what is wrong, without the image's name.
    """

    def __init__(self, name: str, reason: str) -> None:
        """Say `reason` of the image called `name`."""
        super().__init__(f"{name}: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class EncodedImage:
    """One encoded image of a shard."""

    image_id: int
    file_name: str
    height: int
    width: int
    encoded: bytes

    def decode(self) -> np.ndarray:
        """Return RGB uint8 (H, W, 3)."""
        return decode_image(self.encoded, self.file_name)


def decode_image(encoded: bytes, name: str) -> np.ndarray:
    """Return RGB uint8 (H, W, 3); grey-scale and alpha become RGB, EXIF rotation is ignored.

    COCO's boxes and masks are in the stored frame, so the rotation tag must not turn the image.

    Raises:
        BrokenImageError: the bytes are no image, or one too large or too thin.
    """
    return _decode(encoded, name, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def decode_upright(encoded: bytes, name: str) -> np.ndarray:
    """Return RGB uint8 (H, W, 3) as a viewer shows it: turned as the EXIF tag says.

    For images that no annotation belongs to, such as a phone's; else as `decode_image`.
    """
    return _decode(encoded, name, cv2.IMREAD_COLOR_RGB)


def _decode(encoded: bytes, name: str, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags) if encoded else None
    except cv2.error as error:  # such as one of more than 2^30 pixels
        raise BrokenImageError(name, f"OpenCV refuses it: {' '.join(error.err.split())}") from None
    if image is None:
        raise BrokenImageError(name, f"cannot be decoded as an image ({len(encoded)} bytes)")
    height, width = image.shape[:2]
    if max(height, width) > LARGEST_ASPECT * min(height, width):
        raise BrokenImageError(
            name, f"is {width} × {height} pixels, thinner than 1 : {LARGEST_ASPECT}; crop it"
        )
    return image


def normalise_pixels(images: np.ndarray) -> "torch.Tensor":
    """Return float32 (N, 3, H, W) with mean 0 and deviation 1 per channel of uint8 (N, H, W, 3)."""
    import torch  # 3 s that a stage without a network does not need

    mean, std = torch.tensor(PIXEL_MEAN) * 255, torch.tensor(PIXEL_STD) * 255
    return ((torch.from_numpy(np.ascontiguousarray(images)) - mean) / std).permute(0, 3, 1, 2)


def write_images(path: Path, images: Iterable[EncodedImage]) -> int:
    """Write one shard, streaming; return how many images it holds."""
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
    """Return the number of images of a shard without reading them."""
    if not path.is_file():
        raise FileNotFoundError(f"{path.absolute()}: no such image shard; `dvc repro` makes it")
    return pq.read_metadata(path).num_rows


def read_images(*paths: Path) -> Iterator[EncodedImage]:
    """Yield the images of one or more shards in file order, a row group in memory at a time."""
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path.absolute()}: no such image shard; `dvc repro` makes it")
        for batch in pq.ParquetFile(path).iter_batches(ROW_GROUP):
            for row in batch.to_pylist():
                yield EncodedImage(
                    row["image_id"], row["file_name"], row["height"], row["width"], row["bytes"]
                )
