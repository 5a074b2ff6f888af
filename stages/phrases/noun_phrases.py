"""Noun phrases of a narrative, such as "red cup" or "tennis player".

Two ways, both of which leave out pronouns and words for the image itself ("background", "left
side"), and give the phrase without its article. The poster does not say how its phrases are found.

- pattern: without any model. A phrase is a run of words between words of closed classes, which are
  listed below, and participles. It knows no grammar: a verb that is not listed becomes a noun.
- spacy: noun chunks of an installed spaCy model, which has to be fetched by hand.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from stages.phrases.params import PhrasesParams

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
SEVERAL = set(
    "two three four five six seven eight nine ten some few several many multiple both various"
    " these those group groups bunch couple pair lots".split()
)
DETERMINERS = SEVERAL | set(
    "a an the this that one another other any each every all his her its my our their your".split()
)
# Words that no phrase contains: prepositions, conjunctions, pronouns, verbs and adverbs.
BOUNDARIES = set(
    "about above across after against along also among amongst and are around as at back be been"
    " before behind being below beneath beside besides between beyond but by called can consists"
    " contains could down for from has have he here him i if in inside into is it just left like"
    " looks made may me near nearby next no not of off on onto or out outside over right see seem"
    " seems seen she shows sits so stands than them then there they through to toward towards under"
    " up upon us very was we were what where which while who whose with within without you"
    " appears even few hold holds kept lies near nearer observe placed present visible".split()
)
NOUNS_IN_ING = set(
    "awning building buildings ceiling clothing crossing drawing dressing earring evening flooring"
    " icing king landing lightning morning painting paintings parking pudding railing railings ring"
    " rings siding sling spring string strings swing swings thing things wedding wing wings".split()
)
NOUNS_IN_ED = set("bed beds feed red reed seaweed seed shed sled weed".split())
ADJECTIVES = set(
    "beige big black blue bright brown clear cream dark empty golden gray green grey large light"
    " long maroon new old orange pink purple red short silver small tall violet white"
    " yellow".split()
)
# Heads of phrases about the image or its parts, and of amounts, which are no objects.
NO_OBJECTS = set(
    "image image photo photograph side sides background foreground middle center centre top"
    " bottom left right corner front view part parts back group bunch couple pair lot lots number"
    " kind type set one ones".split()
)


@dataclass(frozen=True)
class Phrase:
    """Characters [start, end) of a text.

    Attributes:
        start: of its first word without articles.
        end: of its last word.
        spoken_from: where its article begins, for whoever speaks of a thing begins there.
        several: it says that there are more than one.
    """

    start: int
    end: int
    spoken_from: int
    several: bool


Parser = Callable[[str], list[Phrase]]


def make_parser(params: PhrasesParams) -> Parser:
    """Return the function that finds the phrases of a text, in order.

    Raises:
        ModuleNotFoundError: spaCy or its model is not installed.
    """
    if params.parser == "pattern":
        return find_by_pattern
    model = load_spacy(params.spacy_model)
    return lambda text: find_by_spacy(text, model)


def find_by_pattern(text: str) -> list[Phrase]:
    """Return the phrases of a text, by the lists of this module."""
    return [phrase for run in _runs(text) if (phrase := _phrase(run)) is not None]


def _runs(text: str) -> Iterator[list[re.Match]]:
    """Yield the words between two boundaries or marks, articles and numbers too."""
    run: list[re.Match] = []
    for match in WORD.finditer(text):
        word = match.group().lower()
        if run and text[run[-1].end() : match.start()].strip(" \t\n-"):
            yield run
            run = []
        if word in BOUNDARIES or (word.endswith("ing") and word not in NOUNS_IN_ING):
            yield run
            run = []
        elif word in DETERMINERS and any(_counts(own) for own in run):
            yield run
            run = [match]
        else:
            run.append(match)
    yield run


def _counts(match: re.Match) -> bool:
    return match.group().lower() not in DETERMINERS


def _phrase(run: list[re.Match]) -> Phrase | None:
    """Return what a run says without articles and participles at its ends, if it is an object."""
    inner = [match for match in run if _counts(match)]
    while inner and _is_participle(inner[-1].group().lower()):
        inner.pop()
    if not inner or inner[-1].group().lower() in NO_OBJECTS | ADJECTIVES:
        return None
    several = any(match.group().lower() in SEVERAL for match in run)
    return Phrase(inner[0].start(), inner[-1].end(), run[0].start(), several)


def _is_participle(word: str) -> bool:
    return word.endswith("ed") and word not in NOUNS_IN_ED


@lru_cache(maxsize=1)
def load_spacy(model: str) -> Any:
    """Return spaCy's pipeline of a model's name or folder.

    Raises:
        ModuleNotFoundError: spaCy or the model is not installed.
    """
    try:
        import spacy

        return spacy.load(model)
    except (ModuleNotFoundError, OSError) as error:
        raise ModuleNotFoundError(
            f"phrases.parser: spacy needs the package spacy and its model {model!r} ({error});"
            " install both by hand, or set the key to pattern"
        ) from None


def find_by_spacy(text: str, model: Callable[[str], Any]) -> list[Phrase]:
    """Return spaCy's noun chunks that name an object, without articles and numbers."""
    found = []
    for chunk in model(text).noun_chunks:
        words = [token for token in chunk if token.text.lower() not in DETERMINERS]
        if not words or chunk.root.pos_ == "PRON" or chunk.root.text.lower() in NO_OBJECTS:
            continue
        last = words[-1]
        several = any(token.text.lower() in SEVERAL for token in chunk)
        found.append(Phrase(words[0].idx, last.idx + len(last.text), chunk[0].idx, several))
    return found
