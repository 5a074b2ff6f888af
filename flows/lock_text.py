"""dvc.lock as text: entries found, replaced and put in order without parsing any.

What DVC writes has one form, in which this is safe. A file of any other form, such as one with
marks of a merge, is left to DVC, which brings it into that form when it next writes.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

SECTION = "stages:\n"
HEAD = f"schema: '2.0'\n{SECTION}"
# The lines of one entry: its name behind two blanks, then whatever is further in.
ENTRY = re.compile(r"  (?P<name>[\w@./-]+):\n(?:    .*\n)+")


@dataclass(frozen=True)
class LockText:
    """The text of each entry, by the stage's name, in the order of the file."""

    entries: dict[str, str]

    @classmethod
    def split(cls, text: str) -> Self | None:
        """Return the entries of a file's text; None if it is not of DVC's own form."""
        if not text.startswith(HEAD):
            return None
        entries, at = {}, len(HEAD)
        while found := ENTRY.match(text, at):
            entries[found["name"]] = found.group()
            at = found.end()
        return cls(entries) if at == len(text) else None

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return the entries of a file; None if there is none, or it is not of DVC's own form."""
        return cls.split(path.read_text(encoding="utf-8")) if path.is_file() else None

    def write(self, path: Path) -> None:
        """Replace the file at once, so that who reads it meanwhile finds a whole one."""
        new = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        new.write_text(str(self), encoding="utf-8")
        new.replace(path)

    def __str__(self) -> str:
        """Return the text of the file."""
        return "".join((HEAD, *self.entries.values()))


def sort_entries(path: Path, names: Iterable[str]) -> None:
    """Put the entries of a file in the order of `names`; those of other names go to the end."""
    lock = LockText.read(path)
    if lock is not None:
        order = [name for name in dict.fromkeys((*names, *lock.entries)) if name in lock.entries]
        if order != list(lock.entries):
            LockText({name: lock.entries[name] for name in order}).write(path)
