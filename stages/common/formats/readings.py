"""Words that name an object in only one of their readings: "an orange", but not "an orange cat".

Two rules cover a fixed list of words; any other word always names its object.

- A word of `ADJECTIVES` is a noun if the caption or clause ends after it, if the next word can
  follow a noun but not an adjective (`AFTER_A_NOUN`: "an orange on a plate"), or if a participle
  with a preposition or article follows ("an orange floating in water"). Otherwise it describes the
  next word ("an orange cat", "a remote beach"). It is never a noun after a word of
  `BEFORE_AN_ADJECTIVE` ("is orange", "dressed in orange") or before "in colour"; nor is "orange"
  beside another colour ("orange and white").
- A word of `VERBS` is a verb after a subject of the matching number: "a man trains", "the teams tie
  the game". A verb without "s", also after "to", must be followed by an object or a preposition
  (`AFTER_A_VERB`), so that "a kids train" and "next to train tracks" stay trains.

Captions must be normalised by `stages.common.formats.captions.normalise`.
"""

import re

ADJECTIVES = {"orange", "remote"}
VERBS = {"bear", "bears", "book", "books", "sink", "sinks", "tie", "ties", "train", "trains"}

COLOURS = set(
    "beige black blue bronze brown cream gold golden gray green grey maroon orange pink purple"
    " red silver tan teal turquoise violet white yellow".split()
)
BEFORE_AN_ADJECTIVE = set(
    "all are be bright brightly burnt colored coloured dark deep fluorescent in is light looks"
    " mostly neon painted quite so too very was wearing were".split()
)
AFTER_A_NOUN = set(
    "a above against along an and are around as at beside besides below between but by cut for"
    " from fruit fruits grows had half halves hangs has have in inside into is lays lies near next"
    " of off on onto or outside over peel rests segment segments sit sits slice slices that the"
    " to under was wedge wedges were which while with".split()
)
AFTER_A_PARTICIPLE = set(
    "a against among an at behind beside between by from in inside into near next of off on onto"
    " over the to under up with".split()
)
AFTER_A_VERB = set(
    "a an down for hard her him his its my our out the their them to together up with your".split()
)
ONE = set(
    "athlete boxer boy child girl guy he kid lady man officer person player runner she skier"
    " soldier someone swimmer team trainer who woman".split()
)
MANY = set(
    "athletes boxers boys can children could girls guys i kids ladies may men might must officers"
    " people players runners should skiers soldiers swimmers teams they trainers we who will"
    " women would you".split()
)
WORDS = re.compile(r"[\w']+|[^\w\s]")


def names_an_object(text: str, start: int, end: int) -> bool:
    """Return whether the word at [start, end) of a normalised caption names an object."""
    word = text[start:end]
    if word not in ADJECTIVES and word not in VERBS:
        return True
    before, after = WORDS.findall(text[:start]), WORDS.findall(text[end:])
    reading = _is_adjective if word in ADJECTIVES else _is_verb
    return not reading(word, ["", "", *before], [*after, "", ""])


def _is_adjective(word: str, before: list[str], after: list[str]) -> bool:
    joining = {"and", "or", ","}
    beside_a_colour = (after[0] in joining and after[1] in COLOURS) or (
        before[-1] in joining and before[-2] in COLOURS
    )
    if before[-1] in BEFORE_AN_ADJECTIVE or (word == "orange" and beside_a_colour):
        return True
    if after[0] == "in" and after[1] in {"color", "colour"}:
        return True
    participle = after[0].endswith(("ed", "ing")) and after[1] in AFTER_A_PARTICIPLE
    if participle and not after[0].startswith("colo"):
        return False
    return after[0][:1].isalnum() and after[0] not in AFTER_A_NOUN


def _is_verb(word: str, before: list[str], after: list[str]) -> bool:
    if word.endswith("s"):
        return before[-1] in ONE
    if after[0] not in AFTER_A_VERB:
        return False
    if before[-1] == "to":
        return before[-2] not in {"adjacent", "close", "closest", "next"}
    return before[-1] in MANY and before[-2] not in {"a", "an"}
