"""Reads and checks image files, keeps their bytes, and assigns images to splits.

Frame: pixels of the stored image.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from stages.common.formats.images import (
    BrokenImageError,
    EncodedImage,
    decode_image,
    decode_upright,
)
from stages.common.runtime.seeding import derive_seed
from stages.download.examples import NO_CAPTION, NO_FILE, Skipped, Task

QUALITY = 95  # JPEG quality of rotated images
SMALLEST_RANGE = 17  # values of 0..255; 12 bits in a file of 16 have 0..15, or 0..16 if rounded
FLAT = "save 12 bits in a file of 16, or black on transparent, as 8-bit RGB"
JPEG_START = b"\xff\xd8"
SCAN, END = 0xDA, 0xD9  # second bytes of JPEG markers
MARKER = re.compile(rb"\xff+[^\x00\xff]", re.DOTALL)
# The first marker after a scan; in a scan's data, 0x00 or a restart marker follows each 0xff.
AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
ALONE = frozenset({0x01, 0xD8, *range(0xD0, 0xD8)})  # markers without a length
ID_BITS = (
    52  # every id is exact as a float and in JSON; a million names collide once in 10 000 sets
)

TaskType = TypeVar("TaskType", bound=Task)


def skip_unread(path: Path, image_id: int, captions: Sequence[str] | None) -> Skipped | None:
    """Return why an image must be skipped, or None if nothing shows before it is read.

    `captions` is None if the split needs none.
    """
    if captions is not None and not captions:
        return Skipped(image_id, str(path), NO_CAPTION)
    # not path.is_file(), which raises OSError for a name that is too long
    return None if os.path.isfile(path) else Skipped(image_id, str(path), NO_FILE)


def read_photograph(path: Path, image_id: int, file_name: str) -> EncodedImage | Skipped:
    """Read and check an existing image file; its bytes are kept unchanged."""
    try:
        encoded = path.read_bytes()
    except OSError as error:
        return Skipped(image_id, str(path), f"cannot be read: {error.strerror}")
    if is_cut_short(encoded):
        reason = f"JPEG without an end, cut short at {len(encoded)} bytes"
        return Skipped(image_id, str(path), reason)
    try:
        pixels = decode_image(encoded, path.name)
    except BrokenImageError as error:
        return Skipped(image_id, str(path), error.reason)
    height, width = pixels.shape[:2]
    if (low := int(pixels.min())) + SMALLEST_RANGE > (high := int(pixels.max())):
        reason = f"is almost of one colour ({low} to {high} of 255); {FLAT}"
        return Skipped(image_id, str(path), reason)
    return EncodedImage(image_id, file_name, height, width, encoded)


def upright(image: EncodedImage) -> EncodedImage:
    """Return an image as a viewer shows it: if its EXIF tag rotates it, encoded again."""
    shown = decode_upright(image.encoded, image.file_name)
    if np.array_equal(shown, image.decode()):
        return image
    quality = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    turned = cv2.imencode(".jpg", shown[..., ::-1], quality)[1].tobytes()
    height, width = shown.shape[:2]
    return EncodedImage(image.image_id, image.file_name, height, width, turned)


def is_cut_short(encoded: bytes) -> bool:
    """Return whether a JPEG file ends before its image; many decoders fill the rest with grey.

    The segments are walked up to the image's end marker. So neither a thumbnail inside a segment
    nor data after the image, such as the video of a phone's motion photo, is taken for the end.
    Source: ITU-T T.81, annex B.
    """
    if not encoded.startswith(JPEG_START):
        return False
    found = MARKER.search(encoded, len(JPEG_START))
    while found:
        marker, place = encoded[found.end() - 1], found.end()
        if marker == END:
            return False
        if marker not in ALONE:
            place += int.from_bytes(encoded[place : place + 2], "big")
        found = (AFTER_SCAN if marker == SCAN else MARKER).search(encoded, place)
    return True


def hashed_id(name: str) -> int:
    """Return a 52-bit image id for an image that has only a name; no other image changes it."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - ID_BITS)


def check_ids(names: Iterable[str]) -> None:
    """Check that all names have different image ids.

    Raises:
        ValueError: two have the same id; the message names both.
    """
    owners: dict[int, str] = {}
    for name in names:
        owner = owners.setdefault(hashed_id(name), name)
        if owner != name:
            raise ValueError(f"'{owner}' and '{name}' hash to one image id; rename one of them")


def is_held_out(image_id: int, purpose: str, val_fraction: float) -> bool:
    """Return whether an image is held out from training, which depends on its id alone.

    Args:
        image_id: of the image.
        purpose: what the image is held out for; each purpose holds out other images.
        val_fraction: fraction of images to hold out, in [0, 1).
    """
    return derive_seed(0, purpose, image_id) < val_fraction * 2**63


def first_images(tasks: Iterable[TaskType], limit: int | None) -> Sequence[TaskType]:
    """Return the `limit` tasks with the smallest image ids, or all if None, ordered by id."""
    return sorted(tasks, key=lambda task: task.image_id)[:limit]
