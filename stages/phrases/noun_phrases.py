"""Noun phrases of a narrative, such as "red cup" or "tennis player".

Two ways, both of which leave out pronouns and words for the image itself ("background", "left
side"), and give the phrase without its article. The poster does not say how its phrases are found.

A phrase is of several things if it has a number or a word such as "some", if an amount stands
before it ("a group of cows"), or if its noun is a plural ("cows", "chests of drawers"). The pointer
goes round all of these things alike, so its box is that of no single object. A plural is told by
its ending, with lists of exceptions; "glasses" and "scissors" are one thing, unless they are
counted, and so is what follows an "a" or "this".

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
# With "of" after them, they say how many there are of what follows.
ONE_OF = set("one each either".split())
ONE = set("a an another each every one that this".split())  # directly before a single thing
DENIALS = set("neither no nor not without".split())
MANY_OF = SEVERAL | set(
    "bunches collection couples crowd dozen dozens flock groups herd hundreds lot number pairs pile"
    " piles row rows series set sets stack stacks variety".split()
)
# With a plural's ending, and yet one thing: "a pair of scissors" too.
ONE_IN_PLURAL = set(
    "atlas binoculars canvas chopsticks clothes fries gas glasses goggles headphones jeans leggings"
    " lens overalls pajamas pants pliers pyjamas rhinoceros scissors shears shorts skis slacks"
    " spectacles stairs sunglasses sweatpants thermos tights tongs trousers tweezers".split()
)
IRREGULAR_PLURALS = set("cattle children feet geese menus mice oxen people taxis teeth".split())
MEN = re.compile(r"(?<!speci)(?<!abdo)(?<!a)(?<!\bo)men$")  # "policemen", but no "specimen", "omen"
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
    " appears even hold holds kept lies near nearer observe placed present visible".split()
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
AMOUNT = re.compile(
    rf"\b(?:(?:an?|the)\s+)?(?:(?:{'|'.join(sorted(ADJECTIVES))})\s+)?"
    rf"({'|'.join(sorted(ONE_OF | MANY_OF))})\s+of\s+$",
    re.IGNORECASE,
)
LONGEST_AMOUNT = 40  # characters that it may take


@dataclass(frozen=True)
class Phrase:
    """Characters [start, end) of a text.

    Attributes:
        start: of its first word without articles.
        end: of its last word.
        spoken_from: where its article or amount begins, for whoever speaks of a thing begins there.
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
    return [phrase for run in _runs(text) if (phrase := _phrase(text, run)) is not None]


def make_phrase(text: str, start: int, end: int, spoken_from: int) -> Phrase:
    """Return a phrase of a text, with an amount before it, and whether it speaks of several.

    Args:
        text: the whole one.
        start: of the phrase's first word.
        end: of its last word.
        spoken_from: where its article begins.
    """
    words = WORD.findall(text[start:end].lower()) or [""]  # a phrase may be a mark alone
    noun = words[words.index("of") - 1] if "of" in words[1:] else words[-1]
    article = WORD.findall(text[spoken_from:start].lower())
    counted = any(word in SEVERAL for word in article)
    before = max(spoken_from - LONGEST_AMOUNT, 0)
    amount = AMOUNT.search(text[before:spoken_from])
    if amount is None or amount.group().lower().startswith("the number"):  # that is one of digits
        one = article[-1:] and article[-1] in ONE
        return Phrase(start, end, spoken_from, counted or (not one and _is_plural(noun)))
    word = amount[1].lower()
    if word in ONE_OF:  # "one of the two cows"
        return Phrase(start, end, before + amount.start(), False)
    one = word == "pair" and noun in ONE_IN_PLURAL
    return Phrase(start, end, before + amount.start(), counted or not one)


def _is_plural(word: str) -> bool:
    if word in IRREGULAR_PLURALS or MEN.search(word):
        return True
    singular = word.endswith(("ss", "us", "is", "'s", "’s")) and not word.endswith("inis")
    return word.endswith("s") and not singular and word not in ONE_IN_PLURAL


def is_denied(text: str, phrase: Phrase) -> bool:
    """Say whether the text says that there is no such thing: "no dog", "without a dog".

    "No parking sign" is a sign.
    """
    before = WORD.findall(text[: phrase.start].lower())
    while before and before[-1] in DETERMINERS:
        before.pop()
    own = WORD.findall(text[phrase.start : phrase.end].lower())
    if own and own[0] in DENIALS:  # spaCy's phrases have it
        return True
    return bool(before and own) and before[-1] in DENIALS and not own[0].endswith("ing")


def goes_on(text: str, end: int) -> bool:
    """Say whether another noun follows directly, so that what ends here is only its attribute."""
    after = WORD.search(text, end)
    if after is None or text[end : after.start()].strip(" \t\n-"):
        return False
    word = after[0].lower()
    return not (_ends_a_run(word) or word in DETERMINERS or _is_participle(word))


def _ends_a_run(word: str) -> bool:
    return word in BOUNDARIES or (word.endswith("ing") and word not in NOUNS_IN_ING)


def _runs(text: str) -> Iterator[list[re.Match]]:
    """Yield the words between two boundaries or marks, articles and numbers too."""
    run: list[re.Match] = []
    for match in WORD.finditer(text):
        word = match.group().lower()
        if run and text[run[-1].end() : match.start()].strip(" \t\n-"):
            yield run
            run = []
        if _ends_a_run(word):
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


def _phrase(text: str, run: list[re.Match]) -> Phrase | None:
    """Return what a run says without articles and participles at its ends, if it is an object."""
    inner = [match for match in run if _counts(match)]
    while inner and _is_participle(inner[-1].group().lower()):
        inner.pop()
    if not inner or inner[-1].group().lower() in NO_OBJECTS | ADJECTIVES:
        return None
    return make_phrase(text, inner[0].start(), inner[-1].end(), run[0].start())


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
        found.append(make_phrase(text, words[0].idx, last.idx + len(last.text), chunk[0].idx))
    return found
