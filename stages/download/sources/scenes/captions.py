"""Captions of scenes, as people might write them.

They have plurals, numbers, colours and other attributes, unrelated nouns and synonyms. Sometimes a
class is left out.
"""

import numpy as np

from stages.download.sources.scenes.classes import SCENE_CLASSES

OPENINGS = (
    "",
    "",
    "a photo of ",
    "there is ",
    "we see ",
    "a picture of ",
    "this is ",
    "someone left ",
)
ATTRIBUTES = ("small", "big", "old", "new", "shiny", "lovely", "strange", "simple")
JOINTS = ("and", "next to", "with", "near", "behind")
PLACES = ("park", "garden", "street", "room", "field", "yard", "studio", "beach")
ENDINGS = (
    "on a sunny day",
    "with some shapes",
    "in the morning",
    "with a busy background",
    "at night",
    "for the family",
    "near the wall",
    "with nice light",
    "again",
    "during summer",
)
NUMBERS = {2: "two", 3: "three", 4: "four"}
COLOUR_MENTIONED, ATTRIBUTE_MENTIONED = 0.4, 0.2  # probabilities, as below
NUMBER_MENTIONED = 0.7  # otherwise "some"
PLACE_MENTIONED, ENDING_MENTIONED = 0.4, 0.3


def write_caption(
    classes: tuple[int, ...],
    colours: tuple[str, ...],
    synonym_fraction: float,
    omission_fraction: float,
    generator: np.random.Generator,
) -> str:
    """Return a caption that names at least one of the classes of a scene's N objects.

    Args:
        classes: N indices into `SCENE_CLASSES`.
        colours: N names of colours.
        synonym_fraction: probability of a synonym if the class has one, in 0..1.
        omission_fraction: probability that one of several classes is left out, in 0..1.
        generator: chooses the words.
    """
    colours_of: dict[int, list[str]] = {}
    for kind, colour in zip(classes, colours, strict=True):
        colours_of.setdefault(kind, []).append(colour)
    named = [list(colours_of)[index] for index in generator.permutation(len(colours_of))]
    if len(named) > 1 and generator.random() < omission_fraction:
        named = named[:-1]
    phrases = [name_objects(kind, colours_of[kind], synonym_fraction, generator) for kind in named]
    caption = _choice(OPENINGS, generator) + ", ".join(phrases[:-1])
    if len(phrases) > 1:
        caption += f" {_choice(JOINTS, generator)} "
    caption += phrases[-1]
    if generator.random() < PLACE_MENTIONED:
        caption += f" in the {_choice(PLACES, generator)}"
    if generator.random() < ENDING_MENTIONED:
        caption += f" {_choice(ENDINGS, generator)}"
    return caption


def name_objects(
    kind: int, colours: list[str], synonym_fraction: float, generator: np.random.Generator
) -> str:
    """Return the words for all objects of class `kind`, such as "a red cup" or "two old cars"."""
    entry, count = SCENE_CLASSES[kind], len(colours)
    synonym = None
    if entry.synonyms and generator.random() < synonym_fraction:
        synonym = _choice(entry.synonyms, generator)
    words = [entry.word(synonym, count > 1)]
    if count == 1 and generator.random() < COLOUR_MENTIONED:
        words.insert(0, colours[0])
    elif generator.random() < ATTRIBUTE_MENTIONED:
        words.insert(0, _choice(ATTRIBUTES, generator))
    if count > 1:
        article = NUMBERS[count] if generator.random() < NUMBER_MENTIONED else "some"
    else:
        article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words])


def _choice(options: tuple[str, ...], generator: np.random.Generator) -> str:
    return options[generator.integers(len(options))]
