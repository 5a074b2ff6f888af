"""The 17 classes of scenes, 12 base and 5 novel: their names, synonyms, drawings and splits.

Division 0 was fixed before anything was measured; the others follow from it by counting on. A
synonym means one class only.
"""

from collections.abc import Callable
from dataclasses import dataclass

from stages.common.formats.categories import Category
from stages.download.plurals import forms_of, plural
from stages.download.sources.scenes import drawings_nature as nature
from stages.download.sources.scenes import drawings_things as things
from stages.download.sources.scenes.shapes import Part, Variation

NUM_NOVEL = 5


@dataclass(frozen=True)
class SceneClass:
    """One class of drawn objects; `synonyms` are other words for it, in the singular."""

    name: str
    draw: Callable[[Variation], list[Part]]
    synonyms: tuple[str, ...] = ()

    def word(self, synonym: str | None, is_plural: bool) -> str:
        """Return the synonym, or the name if None, in the singular or plural."""
        word = synonym or self.name
        return plural(word) if is_plural else word


SCENE_CLASSES = (
    SceneClass("mushroom", nature.draw_mushroom, ("toadstool",)),
    SceneClass("bird", nature.draw_bird),
    SceneClass("lamp", things.draw_lamp),
    SceneClass("cup", things.draw_cup, ("mug",)),
    SceneClass("key", things.draw_key),
    SceneClass("tree", nature.draw_tree),
    SceneClass("house", things.draw_house, ("cottage",)),
    SceneClass("boat", things.draw_boat, ("sailboat",)),
    SceneClass("flower", nature.draw_flower, ("blossom",)),
    SceneClass("apple", nature.draw_apple),
    SceneClass("guitar", things.draw_guitar),
    SceneClass("hat", things.draw_hat),
    SceneClass("umbrella", things.draw_umbrella, ("parasol",)),
    SceneClass("fish", nature.draw_fish),
    SceneClass("car", things.draw_car, ("automobile",)),
    SceneClass("clock", things.draw_clock, ("alarm clock",)),
    SceneClass("butterfly", nature.draw_butterfly),
)


def scene_categories(class_split: int) -> list[Category]:
    """Return the classes as categories, ids from 1 in the order of `SCENE_CLASSES`.

    Args:
        class_split: number of the division into base and novel classes, 0..16. In division 0 the
            last `NUM_NOVEL` classes are novel; in each further one, the classes that follow those
            of the division before, cyclically.
    """
    first = NUM_NOVEL * (class_split - 1)
    novel = {(first + place) % len(SCENE_CLASSES) for place in range(NUM_NOVEL)}
    return [
        Category(
            index + 1,
            entry.name,
            "novel" if index in novel else "base",
            forms_of((entry.name, *entry.synonyms)),
        )
        for index, entry in enumerate(SCENE_CLASSES)
    ]
