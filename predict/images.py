"""The images to predict on: one file, or all in a folder."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from stages.common.formats.image_files import SUFFIXES, ImageFiles, list_images, plain_text
from stages.common.formats.images import decode_upright

NAMED = 5  # at most so many files are listed in a message


@dataclass(frozen=True)
class Found:
    """A decoded image: its name below the folder, with `/`, and RGB, upright."""

    name: str
    image: UInt8[np.ndarray, "H W 3"]


def find_images(path: Path) -> ImageFiles:
    """Return an image, or all images in a folder and its subfolders, and what else is there.

    Raises:
        FileNotFoundError: there is nothing at `path`, or no image in the folder.
    """
    if path.is_file():
        return ImageFiles({plain_text(path.name): path})
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such image or folder")
    files = list_images(path)
    if not files.images:
        told = f"; not read: {name_some(files.others)}" if files.others else ""
        raise FileNotFoundError(f"{path}: no image in it ({', '.join(sorted(SUFFIXES))}){told}")
    return files


def name_some(names: Sequence[str]) -> str:
    """Return the first names with commas between."""
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")


def decode_images(files: Iterable[tuple[str, Path]], broken: dict[str, str]) -> Iterator[Found]:
    """Yield the images that can be decoded, in order; note in `broken` why the others cannot.

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
