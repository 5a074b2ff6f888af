"""The images that a person asks about: one file, or all in a folder."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.common.formats.images import decode_upright

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Found:
    """A decoded image: its name below the folder, with `/`, and RGB uint8 (H, W, 3), upright."""

    name: str
    image: np.ndarray


def list_images(path: Path) -> dict[str, Path]:
    """Return name → file of an image, or of all in a folder and those below it, sorted by name.

    Raises:
        FileNotFoundError: there is nothing at `path`, or no image in the folder.
    """
    if path.is_file():
        return {path.name: path}
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such image or folder")
    files = {
        file.relative_to(path).as_posix(): file
        for file in path.rglob("*")
        if file.suffix.lower() in SUFFIXES and file.is_file()
    }
    if not files:
        raise FileNotFoundError(f"{path}: no image in it ({', '.join(SUFFIXES)})")
    return dict(sorted(files.items()))


def decode_images(files: Iterable[tuple[str, Path]], broken: dict[str, str]) -> Iterator[Found]:
    """Yield those that can be decoded, in order; note in `broken` why the others cannot.

    Frame: upright, as a viewer shows them and as source `folder` of stage `download` stores them.
    """
    for name, file in files:
        try:
            image = decode_upright(file.read_bytes(), name)
        except OSError as error:
            broken[name] = f"{name}: {error.strerror}"
        except ValueError as error:
            broken[name] = str(error)
        else:
            yield Found(name, image)
