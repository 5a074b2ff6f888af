"""Checks of a data set: no class is both base and novel, no held-out image is trained on.

Images are compared by their bytes, so that one image under two names is found.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from stages.common.formats.categories import ALL_SPLITS, Category
from stages.common.formats.images import EncodedImage
from stages.download.examples import HELD_OUT, Leaked, Task


def check_categories(categories: Iterable[Category]) -> None:
    """Check that ids and names are unique, so that no class is both base and novel.

    Raises:
        ValueError: an id or name is given twice, a split is unknown, or there is no base class.
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
        raise ValueError(f"unknown class splits {unknown}; allowed: {', '.join(ALL_SPLITS)}")
    if not any(category.split == "base" for category in categories):
        raise ValueError("there is no base class; the proposal network learns from base classes")


def check_tasks(tasks: Mapping[str, Sequence[Task]]) -> None:
    """Check that image ids are unique within each split.

    Raises:
        ValueError: two images of a split have the same id.
    """
    for split, own in tasks.items():
        counts = Counter(task.image_id for task in own)
        if twice := [image_id for image_id, count in counts.items() if count > 1]:
            raise ValueError(
                f"split {split}: {len(twice)} image ids are given more than once, such as"
                f" {twice[0]}; the source must list each image once"
            )


class LeakCheck:
    """Finds training images whose bytes equal those of a held-out image."""

    def __init__(self) -> None:
        self._held_out: dict[bytes, str] = {}

    def check(self, split: str, image: EncodedImage) -> Leaked | None:
        """Take the next image; return a `Leaked` if it is a training image that was held out.

        All held-out images must come first.
        """
        digest = hashlib.blake2b(image.encoded, digest_size=16).digest()
        if split in HELD_OUT:
            self._held_out.setdefault(digest, f"{image.file_name} of {split}")
        elif digest in self._held_out:
            return Leaked(image.image_id, image.file_name, self._held_out[digest])
        return None
