"""The 17 classes of scenes: their names, the words for them, their drawing, and the split.

Fixed before anything was measured: 12 base and 5 novel classes. Only synonyms that mean one class.
"""

from collections.abc import Callable
from dataclasses import dataclass

from stages.common.categories import Category, Split
from stages.download import drawings_nature as nature
from stages.download import drawings_things as things
from stages.download.plurals import forms_of, plural
from stages.download.shapes import Part, Variation


@dataclass(frozen=True)
class SceneClass:
    """One class of drawn objects; `synonyms` are singular words for it, beside its name."""

    name: str
    split: Split
    draw: Callable[[Variation], list[Part]]
    synonyms: tuple[str, ...] = ()

    def word(self, synonym: str | None, is_plural: bool) -> str:
        """Return the name, or one of its synonyms, for one or for several objects."""
        word = synonym or self.name
        return plural(word) if is_plural else word


SCENE_CLASSES = (
    SceneClass("mushroom", "base", nature.draw_mushroom, ("toadstool",)),
    SceneClass("bird", "base", nature.draw_bird),
    SceneClass("lamp", "base", things.draw_lamp),
    SceneClass("cup", "base", things.draw_cup, ("mug",)),
    SceneClass("key", "base", things.draw_key),
    SceneClass("tree", "base", nature.draw_tree),
    SceneClass("house", "base", things.draw_house, ("cottage",)),
    SceneClass("boat", "base", things.draw_boat, ("sailboat",)),
    SceneClass("flower", "base", nature.draw_flower, ("blossom",)),
    SceneClass("apple", "base", nature.draw_apple),
    SceneClass("guitar", "base", things.draw_guitar),
    SceneClass("hat", "base", things.draw_hat),
    SceneClass("umbrella", "novel", things.draw_umbrella, ("parasol",)),
    SceneClass("fish", "novel", nature.draw_fish),
    SceneClass("car", "novel", things.draw_car, ("automobile",)),
    SceneClass("clock", "novel", things.draw_clock, ("alarm clock",)),
    SceneClass("butterfly", "novel", nature.draw_butterfly),
)


def scene_categories() -> list[Category]:
    """Return the classes as categories, ids from 1 in the order of `SCENE_CLASSES`."""
    return [
        Category(index, entry.name, entry.split, forms_of((entry.name, *entry.synonyms)))
        for index, entry in enumerate(SCENE_CLASSES, 1)
    ]
