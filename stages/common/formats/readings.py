"""Words that name an object in one of their readings only: an orange, but not an orange cat.

Two rules, for an explicit list of words; whatever is not listed always names its object.

- A word of `ADJECTIVES` is a noun if the caption or the clause ends behind it, or if a word follows
  that can follow a noun but no adjective (`AFTER_A_NOUN`: "an orange on a plate"), or a participle
  with a preposition or article ("an orange floating in water"). Else it describes what follows ("an
  orange cat", "a remote beach"). It is no noun either behind a word of `BEFORE_AN_ADJECTIVE` ("is
  orange", "dressed in orange"), nor orange beside another colour ("orange and white"), nor before
  "in colour".
- A word of `VERBS` is a verb behind somebody who does it, in the right number: "a man trains", "the
  teams tie the game". A plural verb, and one behind "to", also needs an object or a preposition of
  `AFTER_A_VERB`, so that "a kids train" and "next to train tracks" stay trains.

Captions are those of `stages.common.formats.captions.normalise`.
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
    """Say whether a word of a normalised caption, characters [start, end), is a thing there."""
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
