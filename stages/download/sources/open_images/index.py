"""The tables of Open Images as an index on disk, to read everything about one image at once.

The official CSV files have up to 15 million rows, which are not sorted by image; in memory they
would take as much as all other data. Frame: coordinates are fractions of the image's width and
height, origin top-left.
"""

import csv
import math
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

from stages.common.formats.narratives import NarrativeReader, split_sentences
from stages.download.sources.open_images.zip_members import Member, list_members

SCHEMA = """
CREATE TABLE image (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE box (
    name TEXT, category INTEGER, x0 REAL, y0 REAL, x1 REAL, y1 REAL, group_of INTEGER);
CREATE TABLE mask (
    name TEXT, category INTEGER, x0 REAL, y0 REAL, x1 REAL, y1 REAL, file TEXT);
CREATE TABLE member (
    file TEXT PRIMARY KEY, offset INTEGER, packed INTEGER, size INTEGER, method INTEGER,
    crc INTEGER) WITHOUT ROWID;
CREATE TABLE verified (name TEXT, category INTEGER, present INTEGER);
CREATE TABLE caption (name TEXT, text TEXT);
"""
IMAGE_ID = re.compile("[0-9a-f]{16}")
TABLES = ("box", "mask", "verified", "caption")
BOX = ("XMin", "YMin", "XMax", "YMax")
OUTSIDE = 0.5  # sides of the image by which a box may leave it; one in pixels does by far more
MASK_BOX = tuple(f"Box{side}" for side in BOX)


@dataclass(frozen=True)
class BoxRow:
    """A box of a class: x0, y0, x1, y1; `group_of`: around more than five touching objects."""

    category_id: int
    corners: tuple[float, float, float, float]
    group_of: bool


@dataclass(frozen=True)
class MaskRow:
    """The outline of one object: the box it was drawn in, and its PNG in an archive.

    `member` is None if the archive or the PNG is missing.
    """

    category_id: int
    corners: tuple[float, float, float, float]
    file_name: str
    member: Member | None


def rows_of(path: Path, columns: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Yield the values of some columns of a CSV file with a header.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is no CSV file in UTF-8, a column is missing, or a row is cut short.
    """
    columns = tuple(columns)
    _require(path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        try:
            header = next(reader, [])
            if missing := [column for column in columns if column not in header]:
                raise ValueError(f"{path}: has no column {', '.join(missing)}, only {header}")
            places = [header.index(column) for column in columns]
            for row in reader:
                if len(row) <= max(places):
                    raise ValueError(f"{path}, line {reader.line_num}: cut short; fetch it again")
                yield tuple(row[place] for place in places)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path}, near line {reader.line_num}: {error}; fetch it again"
            ) from None


def _require(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.absolute()}: not found; `python -m fetch open_images` fetches"
            " what download.open_images.folder of params.yaml needs"
        )


class IndexWriter:
    """Writes an index from the official files."""

    def __init__(self, path: Path, category_ids: Mapping[str, int]) -> None:
        """Create the file; rows with labels that `category_ids` lacks are left out."""
        self._connection = sqlite3.connect(path)
        self._connection.executescript(SCHEMA)
        self._connection.execute("PRAGMA synchronous = OFF")  # useless after a crash anyway
        self._ids = category_ids

    def add_images(self, path: Path) -> None:
        """Add the list of a part's images.

        Raises:
            ValueError: an ImageID is not 16 hexadecimal digits; `fetch` writes to such names.
        """
        names = (name for (name,) in rows_of(path, ["ImageID"]))
        checked = ((_image_id(name, path),) for name in names)
        self._insert("INSERT OR IGNORE INTO image VALUES (?)", checked)

    def add_boxes(self, path: Path) -> None:
        """Add the boxes of a part.

        Raises:
            ValueError: a corner is no finite number, or a box is far outside the image or has its
                corners swapped.
        """
        rows = rows_of(path, ["ImageID", "LabelName", *BOX, "IsGroupOf"])
        self._insert(
            "INSERT INTO box VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                (name, self._ids[label], *_corners(corners, name, path), group_of == "1")
                for name, label, *corners, group_of in rows
                if label in self._ids
            ),
        )

    def add_masks(self, path: Path) -> None:
        """Add the list of a part's outlines; raises as `add_boxes` does."""
        rows = rows_of(path, ["ImageID", "LabelName", *MASK_BOX, "MaskPath"])
        self._insert(
            "INSERT INTO mask VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                (name, self._ids[label], *_corners(corners, name, path), file_name)
                for name, label, *corners, file_name in rows
                if label in self._ids
            ),
        )

    def add_archive(self, path: Path) -> None:
        """Add the list of the outlines in an archive.

        Raises:
            FileNotFoundError: the archive is missing.
            ValueError: the archive is damaged.
        """
        # Sorted by key: archives differ in the first digit, so rows are only appended.
        rows = sorted(astuple(member) for member in list_members(path))
        self._insert("INSERT OR REPLACE INTO member VALUES (?, ?, ?, ?, ?, ?)", rows)

    def add_labels(self, path: Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Add the labels that people have verified as present or absent, of wanted images."""
        rows = rows_of(path, ["ImageID", "LabelName", "Confidence"])
        self._insert(
            "INSERT INTO verified VALUES (?, ?, ?)",
            (
                (name, self._ids[label], _numbers([confidence], name, path)[0] > 0)
                for name, label, confidence in rows
                if label in self._ids and wanted(name)
            ),
        )

    def add_captions(self, paths: Sequence[Path], reader: NarrativeReader) -> None:
        """Add files of Localized Narratives; the reader records the broken lines.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: too many lines of all files are not narratives.
        """
        for path in paths:
            _require(path)
        rows = ((name, " ".join(text.split())) for name, text in reader.read_captions(paths))
        self._insert("INSERT INTO caption VALUES (?, ?)", rows)

    def finish(self) -> None:
        """Index the tables and close the file; call once, after all other methods."""
        for table in TABLES:
            self._connection.execute(f"CREATE INDEX {table}_of ON {table} (name)")
        self._connection.commit()
        self._connection.close()

    def _insert(self, statement: str, rows: Iterable[tuple]) -> None:
        self._connection.executemany(statement, rows)


def _image_id(name: str, path: Path) -> str:
    if not IMAGE_ID.fullmatch(name):
        raise ValueError(f"{path}: ImageID {name!r} is not 16 hexadecimal digits; fetch it again")
    return name


def _numbers(texts: list[str], name: str, path: Path) -> list[float]:
    with suppress(ValueError):  # not a number
        numbers = list(map(float, texts))
        if all(map(math.isfinite, numbers)):
            return numbers
    raise ValueError(
        f"{path}: ImageID {name}: expected finite numbers, found {', '.join(texts)}; fetch it again"
    )


def _corners(texts: list[str], name: str, path: Path) -> list[float]:
    x0, y0, x1, y1 = corners = _numbers(texts, name, path)
    low, high = -OUTSIDE, 1 + OUTSIDE
    if low <= x0 <= x1 <= high and low <= y0 <= y1 <= high:
        return corners
    raise ValueError(
        f"{path}: ImageID {name}: expected XMin ≤ XMax and YMin ≤ YMax in 0..1, fractions of the"
        f" image's sides, found {', '.join(texts)}"
    )


class Index:
    """Reads an index; open one per use, because a connection must not cross a fork."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def names_with(self, table: str) -> Iterator[str]:
        """Yield the listed images that have a row in a table, in alphabetical order."""
        assert table in TABLES
        statement = f"SELECT name FROM image WHERE name IN (SELECT name FROM {table}) ORDER BY name"
        return (name for (name,) in self._connection.execute(statement))

    def boxes(self, name: str) -> list[BoxRow]:
        """Return the boxes of one image."""
        return [
            BoxRow(category_id, tuple(corners), bool(group_of))
            for _, category_id, *corners, group_of in self._rows("box", name)
        ]

    def masks(self, name: str) -> list[MaskRow]:
        """Return the outlines of one image."""
        rows = self._connection.execute(
            "SELECT category, x0, y0, x1, y1, file, offset, packed, size, method, crc"
            " FROM mask LEFT JOIN member USING (file) WHERE name = ? ORDER BY mask.rowid",
            [name],
        )
        return [
            MaskRow(category_id, (x0, y0, x1, y1), file, _member(file, place))
            for category_id, x0, y0, x1, y1, file, *place in rows
        ]

    def verified(self, name: str) -> list[tuple[int, bool]]:
        """Return (category id, whether it is present) for each verified label of one image."""
        return [
            (category_id, bool(there)) for _, category_id, there in self._rows("verified", name)
        ]

    def captions(self, name: str) -> list[str]:
        """Return the captions of one image: the sentences of its narratives.

        A whole narrative has about forty words, more than a vision-language model reads.
        """
        narratives = (text for _, text in self._rows("caption", name) if text)
        return [part for text in narratives for part in split_sentences(text)]

    def _rows(self, table: str, name: str) -> sqlite3.Cursor:
        return self._connection.execute(
            f"SELECT * FROM {table} WHERE name = ? ORDER BY rowid", [name]
        )


def _member(file: str, place: list) -> Member | None:
    return None if None in place else Member(file, *place)
