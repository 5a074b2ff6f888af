"""Source `folder`: a user's own pictures with captions and a list of names, no annotations.

<folder>/train        captioned pictures, in subfolders or not
<folder>/captions.csv columns file_name and caption, a row per caption; or
<folder>/captions.json {file_name: caption or list of captions}
<folder>/names.txt    one class per line; other words for it after a colon, with commas between
<folder>/test         new pictures to predict on

File names are relative to train/. All classes are base classes: without annotations there is
nothing to hold a part of them back from. Frame: upright, as the EXIF tag of a phone's picture says;
such a picture is encoded anew.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from stages.common.categories import Category
from stages.common.image_files import ImageFiles, list_images
from stages.common.images import Picture, decode_upright
from stages.common.storage import read_json
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

COLUMNS = ("file_name", "caption")
QUALITY = 95  # of pictures that had to be turned
LAYOUT = (
    "download.folder.path of params.yaml must have train/, test/, names.txt and captions.csv or"
    " captions.json"
)


@dataclass(frozen=True)
class FolderTask:
    """One picture to read; without captions unless it is one to learn from."""

    image_id: int
    path: Path
    file_name: str
    captions: tuple[str, ...] | None


def folder_source(params: FolderParams) -> Source:
    """Return the source; reads names and captions, no picture.

    Raises:
        FileNotFoundError: a file or folder is not there.
        ValueError: names or captions cannot be understood.
    """
    folder = Path(params.path)
    captions = read_captions(folder)
    there = {part: _list_files(folder / part) for part in ("train", "test")}
    # A file that a caption names is read whatever it is called.
    train = {name: folder / "train" / name for name in captions} | there["train"].images
    test = there["test"].images
    check_ids(f"train/{name}" for name in train)
    check_ids(f"test/{name}" for name in test)
    learned = [
        FolderTask(hashed_id(f"train/{name}"), path, name, tuple(captions.get(name, ())))
        for name, path in train.items()
    ]
    shown = (FolderTask(hashed_id(f"test/{name}"), path, name, None) for name, path in test.items())
    tasks = {
        "pairs": first_images(learned, params.max_images.pairs),
        "train": first_images(learned, params.max_images.train),
        "val": [],
        "test": first_images(shown, params.max_images.test),
    }
    names = read_names(folder / "names.txt")
    others = {
        part: [name for name in files.others if part == "test" or name not in captions]
        for part, files in there.items()
    }
    ignored = {part: left for part, left in others.items() if left}
    return Source(names, tasks, make_example, look_up, ignored, annotated=False)


def _list_files(folder: Path) -> ImageFiles:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder.absolute()}: no such folder; {LAYOUT}")
    return list_images(folder)


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
    """Return the captions of a picture that is there."""
    skipped = skip_unread(task.path, task.image_id, task.captions)
    return skipped or Listed(task.image_id, task.captions or (), ())


def make_example(task: FolderTask) -> Example | Skipped:
    """Read and check one picture, and turn it upright."""
    if skipped := skip_unread(task.path, task.image_id, task.captions):
        return skipped
    picture = read_photograph(task.path, task.image_id, task.file_name)
    if isinstance(picture, Skipped):
        return picture
    return Example(_upright(picture), task.captions or (), ())


def _upright(picture: Picture) -> Picture:
    upright = decode_upright(picture.encoded, picture.file_name)
    if np.array_equal(upright, picture.decode()):
        return picture
    quality = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    turned = cv2.imencode(".jpg", upright[..., ::-1], quality)[1].tobytes()
    return Picture(picture.image_id, picture.file_name, *upright.shape[:2], turned)
