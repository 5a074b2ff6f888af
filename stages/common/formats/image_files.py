"""The image files below a user's folder: which ones are read, and which are skipped.

Names are relative to the folder, with `/`, and valid UTF-8: other bytes of a file name are
percent-encoded ("caf%E9.jpg").
"""

import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

SUFFIXES = frozenset({".bmp", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
# Folders of thumbnails and copies, which a NAS and macOS' archives have; such as those of Jupyter
# begin with a dot.
UNSEEN = frozenset({"@eaDir", "__MACOSX"})
UNDECODED = re.compile("[\udc80-\udcff]")  # os.fsdecode maps bytes that are not UTF-8 to these


@dataclass(frozen=True)
class ImageFiles:
    """The files below a folder.

    Attributes:
        images: the path of each image by name, sorted by name.
        others: sorted names of skipped files, hidden images among them, and of unreadable folders.
            Other hidden files are not listed.
    """

    images: dict[str, Path] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def list_images(folder: Path) -> ImageFiles:
    """Return the files of a folder and of all folders below it; symbolic links are followed."""
    images: dict[str, Path] = {}
    others: list[str] = []

    def note(error: OSError) -> None:
        name = plain_text(os.path.relpath(error.filename, folder))
        others.append(f"{name}/ ({error.strerror})")

    for path in _walk(folder, note):
        relative = path.relative_to(folder)
        name = plain_text(relative.as_posix())
        hidden = any(part.startswith(".") or part in UNSEEN for part in relative.parts)
        is_image = path.suffix.lower() in SUFFIXES
        if is_image and not hidden and path.is_file():
            images[name] = path
        elif is_image or not hidden:
            others.append(name if path.exists() else f"{name} (broken link)")
    return ImageFiles(dict(sorted(images.items())), sorted(others))


def plain_text(name: str) -> str:
    """Return a file name with bytes that are not UTF-8 as %XX and accents composed (NFC)."""
    text = UNDECODED.sub(lambda found: f"%{ord(found[0]) - 0xDC00:02X}", name)
    return unicodedata.normalize("NFC", text)  # macOS decomposes "é"


def _walk(folder: Path, note: Callable[[OSError], None]) -> Iterator[Path]:
    """Yield the files below a folder, visiting each folder once; `note` gets the errors."""
    seen: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, onerror=note, followlinks=True):
        found = os.stat(parent)
        if (place := (found.st_dev, found.st_ino)) in seen:
            folders.clear()
            continue
        seen.add(place)
        folders.sort()
        yield from (Path(parent, name) for name in files)
