"""Captions, and where they name an object class.

All stages use one rule. The caption is lower-cased; hyphens, slashes and underscores become spaces.
The forms of all classes (names, synonyms, plurals) are searched for at word boundaries, longest
form first, so that "hot dog" does not also match "dog". All occurrences in all captions of an image
count, unless the word does not name an object ("orange cat": see `readings.py` beside this).
Source: Mask-free OVIS, the object c_t of a caption. The official code differs: it takes only the
first occurrence of a name or listed synonym, and no plurals.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from stages.common.formats.categories import Category
from stages.common.formats.readings import names_an_object
from stages.common.runtime.storage import read_json


@dataclass(frozen=True)
class Mention:
    """A class that a caption names at characters [start, end)."""

    category_id: int
    start: int
    end: int


class MentionFinder:
    """Finds the mentions of a set of classes."""

    def __init__(self, categories: Iterable[Category]) -> None:
        """Take all classes; an excluded class is never reported, but its words match no other.

        Raises:
            ValueError: two classes share a form.
        """
        self._owner: dict[str, int] = {}
        self._excluded: set[int] = set()
        for category in categories:
            if category.split == "excluded":
                self._excluded.add(category.id)
            for form in category.forms:
                text = normalise(form)
                if self._owner.setdefault(text, category.id) != category.id:
                    raise ValueError(
                        f"categories {self._owner[text]} and {category.id} share the form '{form}';"
                        " remove it from one of them"
                    )

    @cached_property
    def _pattern(self) -> re.Pattern:
        longest_first = sorted(self._owner, key=lambda form: (-len(form), form))
        return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")

    def find(self, caption: str) -> list[Mention]:
        """Return the mentions in order; their offsets refer to `normalise(caption)`."""
        if not self._owner:
            return []
        return [
            Mention(self._owner[match.group()], *match.span())
            for match in self._pattern.finditer(normalise(caption))
            if self._owner[match.group()] not in self._excluded
            and names_an_object(match.string, *match.span())
        ]

    def classes(self, captions: Iterable[str]) -> set[int]:
        """Return the ids of all classes that any of the captions names."""
        return {mention.category_id for caption in captions for mention in self.find(caption)}


def normalise(caption: str) -> str:
    """Lower-case; hyphens, slashes and underscores become spaces; the length stays the same."""
    lowered = "".join(c if len(c.lower()) != 1 else c.lower() for c in caption)
    return lowered.replace("-", " ").replace("/", " ").replace("_", " ")


def read_captions(*paths: Path) -> dict[int, list[str]]:
    """Return the captions of each image id in one or more caption files."""
    return {entry["image_id"]: entry["captions"] for path in paths for entry in read_json(path)}
