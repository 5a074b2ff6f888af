"""Is the data set fit to measure generalisation on? Classes of one part only, no test picture seen.

Pictures are compared by their bytes, so that one photograph under two names is found.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable

from stages.common.categories import ALL_SPLITS, Category
from stages.common.images import Picture

NAMED_IN_ERROR = 5
LEARNED_FROM = frozenset({"pairs", "train"})


def check_categories(categories: Iterable[Category]) -> None:
    """Check that ids and names are unique, so that no class is both base and novel.

    Raises:
        ValueError: one is not, there is no base class, or a part is unknown.
    """
    categories = list(categories)
    for field in ("id", "name"):
        counts = Counter(getattr(category, field) for category in categories)
        for value, count in counts.items():
            if count > 1:
                parts = sorted({c.split for c in categories if getattr(c, field) == value})
                raise ValueError(
                    f"class {field} {value!r} is given {count} times (in {', '.join(parts)}); a"
                    " class belongs to one of base, novel and excluded"
                )
    unknown = sorted({category.split for category in categories} - set(ALL_SPLITS))
    if unknown:
        raise ValueError(f"classes of the parts {unknown}; allowed: {', '.join(ALL_SPLITS)}")
    if not any(category.split == "base" for category in categories):
        raise ValueError("no class is of the part base, which the proposal network learns from")


class LeakCheck:
    """Finds held-out pictures that are training pictures, too."""

    def __init__(self) -> None:
        self._learned: set[int] = set()
        self._leaked: dict[str, list[str]] = {}

    def add(self, split: str, picture: Picture) -> None:
        """Take the next picture; those to learn from must come before those held out."""
        digest = hashlib.blake2b(picture.encoded, digest_size=8).digest()
        key = int.from_bytes(digest, "big")
        if split in LEARNED_FROM:
            self._learned.add(key)
        elif key in self._learned:
            self._leaked.setdefault(split, []).append(picture.file_name)

    def problems(self) -> list[str]:
        """Return one message per split that has such pictures."""
        return [
            f"split {split}: {len(names)} pictures are the same, byte for byte, as training"
            f" pictures ({', '.join(names[:NAMED_IN_ERROR])}"
            f"{', …' if len(names) > NAMED_IN_ERROR else ''}). Remove them from one of the two"
            for split, names in self._leaked.items()
        ]
