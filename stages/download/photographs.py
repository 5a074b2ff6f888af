"""Photographs from a folder: read and checked, their bytes kept, and dealt out to the splits.

Frame: pixels of the stored picture.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from stages.common.images import Picture, decode_image
from stages.common.seeding import derive_seed
from stages.download.examples import Skipped, Task

JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
ID_BITS = (
    52  # every id is exact as a float and in JSON; a million names collide once in 10 000 sets
)

TaskType = TypeVar("TaskType", bound=Task)


def read_photograph(path: Path, image_id: int, file_name: str) -> Picture | Skipped:
    """Read and check one photograph; its bytes are kept as they are."""
    try:
        encoded = path.read_bytes()
    except FileNotFoundError:
        return Skipped(image_id, str(path), "no such file")
    if is_cut_short(encoded):
        reason = f"JPEG without an end, cut short at {len(encoded)} bytes"
        return Skipped(image_id, str(path), reason)
    try:
        image_hw = decode_image(encoded, path.name).shape[:2]
    except ValueError:
        reason = f"cannot be decoded as a picture ({len(encoded)} bytes)"
        return Skipped(image_id, str(path), reason)
    return Picture(image_id, file_name, *image_hw, encoded)


def is_cut_short(encoded: bytes) -> bool:
    """Return whether a JPEG ends before its last scan does; many decoders fill in grey.

    Neither marker can be part of a scan's own data, where 0xff is always followed by 0x00 or a
    restart marker.
    """
    return encoded.startswith(JPEG_START) and encoded.rfind(JPEG_END) < encoded.rfind(JPEG_SCAN)


def hashed_id(name: str) -> int:
    """Return an image id for a picture that has only a name: the same whatever else is there."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - ID_BITS)


def check_ids(names: Iterable[str]) -> None:
    """Check that no two names have one image id.

    Raises:
        ValueError: they have; the message names both.
    """
    owners: dict[int, str] = {}
    for name in names:
        owner = owners.setdefault(hashed_id(name), name)
        if owner != name:
            raise ValueError(f"'{owner}' and '{name}' hash to one image id; rename one of them")


def is_held_out(image_id: int, purpose: str, val_fraction: float) -> bool:
    """Return whether a training picture is in val: the same for every seed and image count."""
    return derive_seed(0, purpose, image_id) < val_fraction * 2**63


def first_images(tasks: Iterable[TaskType], limit: int | None) -> Sequence[TaskType]:
    """Return at most `limit` tasks, those of the smallest image ids, in order of their id."""
    return sorted(tasks, key=lambda task: task.image_id)[:limit]
