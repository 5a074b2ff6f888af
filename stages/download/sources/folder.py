"""Source `folder`: a user's own images with captions and a list of names, no annotations.

<folder>/train        captioned images, in subfolders or not
<folder>/captions.csv columns file_name and caption, a row per caption; or
<folder>/captions.json {file_name: caption or list of captions}
<folder>/names.txt    one class per line; other words for it after a colon, with commas between
<folder>/test         new images to predict on

File names are relative to train/. All classes are base classes: without annotations there is
nothing to hold a part of them back from. Frame: upright, as the EXIF tag of a phone's image says;
such an image is encoded anew.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from stages.common.formats.categories import Category
from stages.common.formats.images import EncodedImage, decode_upright
from stages.common.runtime.storage import read_json
from stages.download.examples import Example, Listed, Skipped, Source
from stages.download.params import FolderParams
from stages.download.photographs import (
    check_ids,
    first_images,
    hashed_id,
    read_photograph,
    skip_unread,
)
from stages.download.plurals import forms_of

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
COLUMNS = ("file_name", "caption")
QUALITY = 95  # of images that had to be turned
LAYOUT = (
    "download.folder.path of params.yaml must have train/, test/, names.txt and captions.csv or"
    " captions.json"
)


@dataclass(frozen=True)
class FolderTask:
    """One image to read; without captions unless it is one to learn from."""

    image_id: int
    path: Path
    file_name: str
    captions: tuple[str, ...] | None


def folder_source(params: FolderParams) -> Source:
    """Return the source; reads names and captions, no image.

    Raises:
        FileNotFoundError: a file or folder is not there.
        ValueError: names or captions cannot be understood.
    """
    folder = Path(params.path)
    captions = read_captions(folder)
    learned_from, not_read = list_files(folder / "train")
    test, not_shown = list_files(folder / "test")
    train = sorted({*learned_from, *captions})
    check_ids(f"train/{name}" for name in train)
    check_ids(f"test/{name}" for name in test)
    learned = [_task(folder, "train", name, tuple(captions.get(name, ()))) for name in train]
    tasks = {
        "pairs": first_images(learned, params.max_images.pairs),
        "train": first_images(learned, params.max_images.train),
        "val": [],
        "test": first_images(
            (_task(folder, "test", name, None) for name in test), params.max_images.test
        ),
    }
    names = read_names(folder / "names.txt")
    others = {"train": [name for name in not_read if name not in captions], "test": not_shown}
    ignored = {part: files for part, files in others.items() if files}
    return Source(names, tasks, make_example, look_up, ignored, annotated=False)


def _task(folder: Path, part: str, name: str, captions: tuple[str, ...] | None) -> FolderTask:
    return FolderTask(hashed_id(f"{part}/{name}"), folder / part / name, name, captions)


def list_files(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of all images below a folder and of its other files, but hidden ones.

    Names are relative to the folder, and in order. `SUFFIXES` are those of images.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder.absolute()}: no such folder; {LAYOUT}")
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    images = [path for path in paths if path.suffix.lower() in SUFFIXES]
    others = [path for path in paths if path.suffix.lower() not in SUFFIXES]
    return (
        sorted(path.as_posix() for path in images),
        sorted(path.as_posix() for path in others if not path.name.startswith(".")),
    )


def read_names(path: Path) -> tuple[Category, ...]:
    """Return the classes that a file lists, ids from 1 in its order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it names no class, or one word for two.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.absolute()}: not found; {LAYOUT}")
    categories, owners = [], {}
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    for number, line in enumerate(lines, 1):
        name, _, others = line.partition(":")
        if not (name := " ".join(name.split())):
            continue
        synonyms = (" ".join(word.split()) for word in others.split(","))
        forms = forms_of(word.lower() for word in (name, *synonyms) if word)
        for form in forms:
            if form in owners:
                raise ValueError(
                    f"{path}, line {number}: '{form}' already stands for '{owners[form]}'; every"
                    " word must name one class"
                )
            owners[form] = name
        categories.append(Category(len(categories) + 1, name, "base", forms))
    if not categories:
        raise ValueError(f"{path}: names no class; write one per line, e.g. 'cat: kitten, kitty'")
    return tuple(categories)


def read_captions(folder: Path) -> dict[str, list[str]]:
    """Return file name → captions of captions.csv or captions.json.

    Raises:
        FileNotFoundError: neither is there.
        ValueError: both are, or the file is of another form.
    """
    table, mapping = folder / "captions.csv", folder / "captions.json"
    if table.is_file() == mapping.is_file():
        if table.is_file():
            raise ValueError(f"{folder.absolute()} has captions.csv and captions.json; remove one")
        raise FileNotFoundError(f"{table.absolute()}: not found, nor captions.json; {LAYOUT}")
    captions: dict[str, list[str]] = {}
    for name, caption in _csv_rows(table) if table.is_file() else _json_items(mapping):
        if text := " ".join(caption.split()):
            captions.setdefault(name, []).append(text)
    return captions


def _csv_rows(path: Path) -> list[tuple[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if missing := sorted(set(COLUMNS) - set(reader.fieldnames or ())):
            raise ValueError(
                f"{path}: has no column {' and '.join(missing)}, only {reader.fieldnames}; its"
                f" first line must be {','.join(COLUMNS)}"
            )
        rows = [(row["file_name"], row["caption"]) for row in reader]
    short = [number for number, row in enumerate(rows, 2) if None in row]
    if short:
        raise ValueError(f"{path}, row {short[0]}: has no caption; put commas within quotes")
    return rows


def _json_items(path: Path) -> list[tuple[str, str]]:
    content = read_json(path)
    items = content.items() if isinstance(content, dict) else ()
    rows = [
        (name, text)
        for name, texts in items
        for text in (texts if isinstance(texts, list) else [texts])
    ]
    if not isinstance(content, dict) or not all(isinstance(text, str) for _, text in rows):
        raise ValueError(f"{path}: must be {{file_name: caption or list of captions}}")
    return rows


def look_up(task: FolderTask) -> Listed | Skipped:
    """Return the captions of an image that is there."""
    skipped = skip_unread(task.path, task.image_id, task.captions)
    return skipped or Listed(task.image_id, task.captions or (), ())


def make_example(task: FolderTask) -> Example | Skipped:
    """Read and check one image, and turn it upright."""
    if skipped := skip_unread(task.path, task.image_id, task.captions):
        return skipped
    image = read_photograph(task.path, task.image_id, task.file_name)
    if isinstance(image, Skipped):
        return image
    return Example(_upright(image), task.captions or (), ())


def _upright(image: EncodedImage) -> EncodedImage:
    upright = decode_upright(image.encoded, image.file_name)
    if np.array_equal(upright, image.decode()):
        return image
    quality = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    turned = cv2.imencode(".jpg", upright[..., ::-1], quality)[1].tobytes()
    return EncodedImage(image.image_id, image.file_name, *upright.shape[:2], turned)
