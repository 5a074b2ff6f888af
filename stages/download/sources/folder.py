"""Source `folder`: a user's own images with captions and a list of class names, no annotations.

<folder>/train         captioned images, in subfolders or not
<folder>/captions.csv  columns file_name and caption, one row per caption; or
<folder>/captions.json {file_name: caption or list of captions}
<folder>/narratives.jsonl Localized Narratives, with file names as image_id, or names without
                       folder and suffix, such as the official ids of ADE20k and Flickr30k; without
                       a file of captions, their sentences are the captions
<folder>/names.txt     one class per line; after a colon, synonyms with commas between; after #, a
                       comment
<folder>/test          new images to predict on

File names are relative to train/. All classes are base classes: novel classes are those without
annotations, and here no class has any. Frame: pixels of the upright image; an image that its EXIF
tag rotates is encoded again.
"""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from stages.common.formats.captions import normalise
from stages.common.formats.categories import Category
from stages.common.formats.image_files import SUFFIXES, ImageFiles, list_images, plain_text
from stages.common.formats.narratives import NarrativeReader, split_sentences
from stages.common.runtime.storage import read_json, read_text
from stages.download.examples import Example, Listed, NarrativeFiles, Skipped, Source, plain
from stages.download.params import FolderParams
from stages.download.photographs import (
    check_ids,
    first_images,
    hashed_id,
    read_photograph,
    skip_unread,
    upright,
)
from stages.download.plurals import forms_of

COLUMNS = ("file_name", "caption")
NARRATIVES = "narratives.jsonl"
QUOTES = "put the whole caption within quotes, and write a quote in it twice"
# Another row of captions.csv inside a caption: a quote in it was not meant to open one.
ENDS = "|".join(map(re.escape, sorted(SUFFIXES)))
ROW = re.compile(rf"[\r\n]\s*([^,\n]+({ENDS}))\s*,", re.I)
SUFFIX = re.compile(rf"({ENDS})\s*$", re.I)
NUMBERED = re.compile(r"#\d+\s*$")  # a caption's number behind a file name, as in Flickr8k
COMMENT = re.compile(r"(^|\s)#.*")
LISTED = re.compile(r"([-*•]|\d+[.)])\s+(.*)")  # an item of a list: "- cat", "1. cat"
NAMED = 12  # files that a message lists
KEY = "download.folder.path"
LAYOUT = (
    f"{KEY} of params.yaml must have train/, test/, names.txt and captions.csv,"
    " captions.json or narratives.jsonl"
)


@dataclass(frozen=True)
class FolderTask:
    """One image to read; `captions` is None for images to predict on."""

    image_id: int
    path: Path
    file_name: str
    captions: tuple[str, ...] | None


def folder_source(params: FolderParams, max_broken_fraction: float) -> Source:
    """Return the source; reads names and captions, no image.

    Args:
        params: its section.
        max_broken_fraction: of the narratives' lines, in 0..1, above which they are refused.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: names or captions cannot be understood.
    """
    folder = Path(params.path).expanduser()
    there = {part: _list_files(folder / part) for part in ("train", "test")}
    file_name = name_files(there["train"].images)
    captions = read_captions(folder, there["train"].images, file_name, max_broken_fraction)
    # A file with a caption is read whatever its suffix.
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
    path, traces = folder / NARRATIVES, None
    if path.is_file():
        example = tasks["train"][0].file_name if tasks["train"] else "a.jpg"
        traces = NarrativeFiles(
            [path], lambda name: hashed_id(f"train/{file_name(name)}"), example, KEY
        )
    return Source(names, tasks, make_example, look_up, ignored, annotated=False, narratives=traces)


def _list_files(folder: Path) -> ImageFiles:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder.absolute()}: no such folder; {_layout(folder.parent)}")
    files = list_images(folder)
    if not files.images and not files.others:
        raise FileNotFoundError(f"{folder.absolute()}: is empty; put images there")
    return files


def _layout(folder: Path) -> str:
    """Return what the folder must have, and what it has: perhaps under a name of another form."""
    there = sorted(plain_text(path.name) for path in folder.iterdir()) if folder.is_dir() else []
    more = ", …" if len(there) > NAMED else ""
    return f"{LAYOUT}; there are {', '.join(there[:NAMED])}{more}" if there else LAYOUT


def read_names(path: Path) -> tuple[Category, ...]:
    """Return the classes of names.txt, with ids from 1 in the order of the file.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it names no class, a line is not a class, or a word names two classes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.absolute()}: not found; {_layout(path.parent)}")
    written: list[tuple[tuple[int, str], list[str]]] = []  # line and name of each class, its words
    owners: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        name, _, others = COMMENT.sub("", line).partition(":")
        if not (name := plain(name)):
            continue
        if fault := _fault_of_name(name, others):
            raise ValueError(f"{path}, line {number}: {fault}")
        words = [word.lower() for word in (name, *map(plain, others.split(","))) if word]
        for word in words:
            owner = owners.setdefault(normalise(word), (number, name))
            if owner[0] != number:
                raise ValueError(
                    f"{path}, line {number}: '{word}' already stands for '{owner[1]}' of line"
                    f" {owner[0]}; every word must name one class"
                )
        written.append(((number, name), words))
    categories = []
    for number, (owner, words) in enumerate(written, 1):
        # A plural that is another class' word is that class': "glasses" beside "glass".
        forms = (w for w in forms_of(words) if owners.setdefault(normalise(w), owner) == owner)
        categories.append(Category(number, owner[1], "base", tuple(forms)))
    if not categories:
        raise ValueError(f"{path}: names no class; write one per line, e.g. 'cat: kitten, kitty'")
    return tuple(categories)


def _fault_of_name(name: str, others: str) -> str | None:
    if not any(letter.isalpha() for letter in name):
        class_name = others.split(",")[0].strip() or "cat"
        return (
            f"'{name}' is not a name; write only the class, '{class_name}'; its line is its number"
        )
    if found := LISTED.match(name):
        return f"'{name}' begins with '{found[1]}'; write only the class, '{found[2]}'"
    if "," in name:
        return f"'{name}' has a comma; write one class per line, its synonyms after a colon"
    return None


def name_files(images: Collection[str]) -> Callable[[str], str]:
    """Return the function from a narrative's image_id to the name of its file, among `images`.

    The id is the name, or what is left of it without folder and suffix if only one file has that:
    the official ids of ADE20k and Flickr30k are such. Another id is returned as it is.
    """
    by_stem = _only(images, lambda name: PurePosixPath(name).stem)

    def file_name(image_id: str) -> str:
        name = _below_train(image_id)
        return name if name in images else by_stem.get(name, name)

    return file_name


def _only(names: Collection[str], key: Callable[[str], str]) -> dict[str, str]:
    """Return key → name, for the keys that only one name has."""
    keys = {name: key(name) for name in names}
    counts = Counter(keys.values())
    return {own: name for name, own in keys.items() if counts[own] == 1}


def read_captions(
    folder: Path,
    images: Collection[str],
    file_name: Callable[[str], str],
    max_broken_fraction: float,
) -> dict[str, list[str]]:
    """Return file name → captions, from captions.csv or captions.json, or else the narratives.

    Args:
        folder: of the user.
        images: names of the files of train/.
        file_name: from a narrative's image_id to the name of its file.
        max_broken_fraction: of the narratives' lines, in 0..1, above which they are refused.

    Raises:
        FileNotFoundError: there is none of these files.
        ValueError: there are both files of captions, the file has another format or is empty, or
            a caption's file name is not one inside train/, or is almost that of an image without
            caption.
    """
    table, mapping = folder / "captions.csv", folder / "captions.json"
    if table.is_file() == mapping.is_file():
        if table.is_file():
            raise ValueError(f"{folder.absolute()} has captions.csv and captions.json; remove one")
        if not (folder / NARRATIVES).is_file():
            raise FileNotFoundError(
                f"{table.absolute()}: not found, nor captions.json, nor {NARRATIVES};"
                f" {_layout(folder)}"
            )
        source = folder / NARRATIVES
        reader = NarrativeReader(max_broken_fraction)
        rows = [
            (file_name(narrative.image_id), sentence)
            for narrative in reader.read([source])
            for sentence in split_sentences(narrative.caption)
        ]
        if not rows:
            raise ValueError(f"{source}: has no narrative; {LAYOUT}")
    else:
        source = table if table.is_file() else mapping
        rows = _csv_rows(source) if source == table else _json_items(source)
    captions: dict[str, list[str]] = {}
    for name, caption in rows:
        if text := plain(caption):
            captions.setdefault(_below_train(name), []).append(text)
    if not captions:
        raise ValueError(f"{source}: has no caption")
    train, likely = folder / "train", _only({*images} - {*captions}, _gist)
    for name in captions:
        fault = _fault_of_file_name(name, train)
        # a file with another suffix may have a caption, too
        if name not in images and not os.path.isfile(train / name) and _gist(name) in likely:
            fault = fault or f"'{name}' is no file in {train}; write '{likely[_gist(name)]}'"
        if fault:
            raise ValueError(f"{source}: {fault}")
    return captions


def _gist(name: str) -> str:
    """Return what is left of a file name that was written down in another form."""
    name = NUMBERED.sub("", name).replace("\\", "/")
    return PurePosixPath(SUFFIX.sub("", name)).name.strip().casefold()


def _below_train(name: str) -> str:
    """Return a file name as the folder's list spells it: composed accents, and 'a' for './a'."""
    return PurePosixPath(plain_text(name)).as_posix()


def _fault_of_file_name(name: str, train: Path) -> str | None:
    path = PurePosixPath(name)
    if not path.parts:
        return "a caption has no file name"
    if path.is_absolute() or ".." in path.parts:
        return f"'{name}' must be a file inside {train.absolute()}, relative to it"
    if path.parts[0] == train.name and not (train / train.name).is_dir():
        relative = path.relative_to(train.name)
        return f"'{name}' must be relative to {train.absolute()}; write '{relative}'"
    return None


def _csv_rows(path: Path) -> list[tuple[str, str]]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    numbered = _number_rows(reader, path)
    header = [name.strip() for name in next(numbered, (1, []))[1]]
    if missing := sorted(set(COLUMNS) - set(header)):
        raise ValueError(
            f"{path}: has no column {' and '.join(missing)}, only {header}; its first line must be"
            f" {','.join(COLUMNS)}"
        )
    if twice := [column for column in COLUMNS if header.count(column) > 1]:
        raise ValueError(f"{path}: has the column {' and '.join(twice)} twice; keep one")
    rows = []
    for number, row in numbered:
        if header == list(COLUMNS):  # all that follows the name is the caption, with its commas
            row[1:] = [",".join(row[1:])] if row[1:] else []
        if len(row) != len(header):
            fault = "has no caption" if len(row) < len(header) else "has too many columns"
            raise ValueError(f"{path}, row {number}: {fault}; put a caption's commas within quotes")
        name, caption = (row[header.index(column)] for column in COLUMNS)
        if swallowed := ROW.search(caption):
            raise ValueError(
                f"{path}, row {number}: a quote opens that does not close before the row of"
                f" '{swallowed[1]}'; {QUOTES}"
            )
        rows.append((name, caption))
    return rows


def _number_rows(reader: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line in which each row begins, counted from 1, and its fields; skip empty rows."""
    number = 1
    try:
        for row in reader:
            if row:
                yield number, row
            number = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, row {number}: {error}; {QUOTES}") from None


def _json_items(path: Path) -> list[tuple[str, str]]:
    content = read_json(path)
    items = content.items() if isinstance(content, dict) else ()
    rows = [
        (name, text)
        for name, texts in items
        for text in (texts if isinstance(texts, list) else [texts])
    ]
    wrong = [f", but '{name}' has {text!r:.40}" for name, text in rows if type(text) is not str]
    if not isinstance(content, dict) or wrong:
        told = "".join(wrong[:1])
        raise ValueError(f"{path}: must be {{file_name: caption or list of captions}}{told}")
    return rows


def look_up(task: FolderTask) -> Listed | Skipped:
    """Return the captions of an existing image, or why it must be skipped."""
    skipped = skip_unread(task.path, task.image_id, task.captions)
    return skipped or Listed(task.file_name, task.captions or (), ())


def make_example(task: FolderTask) -> Example | Skipped:
    """Read and check one image, and rotate it upright."""
    if skipped := skip_unread(task.path, task.image_id, task.captions):
        return skipped
    image = read_photograph(task.path, task.image_id, task.file_name)
    if isinstance(image, Skipped):
        return image
    return Example(upright(image), task.captions or (), ())
