"""Is the data set fit to measure generalisation on? Classes of one part only, no test image seen.

Images are compared by their bytes, so that one photograph under two names is found.
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


def check_tasks(tasks: Mapping[str, Sequence[Task]]) -> None:
    """Check that the ids of a split's images are unique.

    Raises:
        ValueError: two have one.
    """
    for split, own in tasks.items():
        counts = Counter(task.image_id for task in own)
        if twice := [image_id for image_id, count in counts.items() if count > 1]:
            raise ValueError(
                f"split {split}: {len(twice)} image ids are given more than once, such as"
                f" {twice[0]}; the source's list of images must have each once"
            )


class LeakCheck:
    """Finds training images that are held-out images, too, by their bytes."""

    def __init__(self) -> None:
        self._held_out: dict[bytes, str] = {}

    def check(self, split: str, image: EncodedImage) -> Leaked | None:
        """Take the next image, held-out ones first; say which of these it is, if any."""
        digest = hashlib.blake2b(image.encoded, digest_size=16).digest()
        if split in HELD_OUT:
            self._held_out.setdefault(digest, f"{image.file_name} of {split}")
        elif digest in self._held_out:
            return Leaked(image.image_id, image.file_name, self._held_out[digest])
        return None
