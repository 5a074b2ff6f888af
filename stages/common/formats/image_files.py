"""The image files below a folder of a person's own: which are read, which are passed over.

Names are relative to the folder, with `/`, and are text that any file can hold: bytes of a file
name that are no UTF-8 are percent-encoded ("caf%E9.jpg").
"""

import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

SUFFIXES = frozenset({".bmp", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
# What macOS writes beside each file on a disk that is not its own: its data, under the same suffix.
APPLE_DOUBLE = "._"
UNDECODED = re.compile("[\udc80-\udcff]")  # what os.fsdecode makes of a byte that is no UTF-8


@dataclass(frozen=True)
class ImageFiles:
    """What lies below a folder.

    Attributes:
        images: name → file of each image, sorted by name.
        others: names of files that are not read and of folders that cannot be, sorted; of hidden
            files only those with `._`.
    """

    images: dict[str, Path] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def list_images(folder: Path) -> ImageFiles:
    """Return the files of a folder and all folders below it, linked ones too."""
    images: dict[str, Path] = {}
    others: list[str] = []

    def note(error: OSError) -> None:
        name = plain_text(os.path.relpath(error.filename, folder))
        others.append(f"{name}/ ({error.strerror})")

    for path in _walk(folder, note):
        name = plain_text(path.relative_to(folder).as_posix())
        if path.name.startswith(APPLE_DOUBLE):
            others.append(name)
        elif path.suffix.lower() in SUFFIXES:
            images[name] = path
        elif not path.name.startswith("."):
            others.append(name)
    return ImageFiles(dict(sorted(images.items())), sorted(others))


def plain_text(name: str) -> str:
    """Return a file's name with each byte that is no UTF-8 as %XX, and accents composed."""
    text = UNDECODED.sub(lambda found: f"%{ord(found[0]) - 0xDC00:02X}", name)
    return unicodedata.normalize("NFC", text)  # macOS takes "é" apart


def _walk(folder: Path, note: Callable[[OSError], None]) -> Iterator[Path]:
    """Yield the files below a folder, each folder once; `note` gets those that cannot be read."""
    seen: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, onerror=note, followlinks=True):
        found = os.stat(parent)
        if (place := (found.st_dev, found.st_ino)) in seen:
            folders.clear()
            continue
        seen.add(place)
        folders.sort()
        yield from (Path(parent, name) for name in files if os.path.isfile(f"{parent}/{name}"))
