"""The object classes: id, name, the words that name it in captions, and its split."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from stages.common.runtime.storage import read_json

Split = Literal["base", "novel", "excluded"]
ALL_SPLITS: tuple[Split, ...] = ("base", "novel", "excluded")


@dataclass(frozen=True)
class Category:
    """One object class.

    `forms` are the texts, in lower case, that name it in a caption: name, synonyms and plurals.
    """

    id: int
    name: str
    split: Split
    forms: tuple[str, ...]


def read_categories(path: Path, splits: tuple[Split, ...] = ("base", "novel")) -> list[Category]:
    """Return the categories of `splits`, sorted by id.

    Every embedding matrix and every detector indexes classes in this order: class k is
    `read_categories(path)[k]`.

    Raises:
        ValueError: the file is not a list of categories, has an unknown split, or gives an id or a
            name twice.
    """
    content, keys = read_json(path), {field.name for field in fields(Category)}
    if not isinstance(content, list) or not all(
        isinstance(entry, dict) and keys <= entry.keys() for entry in content
    ):
        raise ValueError(f"{path}: expected a list of categories with {', '.join(sorted(keys))}")
    entries = [
        Category(entry["id"], entry["name"], entry["split"], tuple(entry["forms"]))
        for entry in content
    ]
    for field in ("id", "name"):
        values = [getattr(category, field) for category in entries]
        twice = sorted({str(value) for value in values if values.count(value) > 1})
        if twice:
            raise ValueError(f"{path}: category {field} given twice: {', '.join(twice)}")
    unknown = sorted({category.split for category in entries} - set(ALL_SPLITS))
    if unknown:
        raise ValueError(f"{path}: unknown split {unknown}; allowed: {', '.join(ALL_SPLITS)}")
    return sorted((c for c in entries if c.split in splits), key=lambda category: category.id)
