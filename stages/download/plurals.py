"""English plurals: the regular rules, and the exceptions among the words of the classes."""

import re
from collections.abc import Iterable

IRREGULAR = {
    "person": "people",
    "man": "men",
    "foot": "feet",
    "goose": "geese",
    "louse": "lice",
    "ox": "oxen",
    "die": "dice",
    "life": "lives",
    "scarf": "scarves",
    "headscarf": "headscarves",
    "hoof": "hooves",
    "quiz": "quizzes",
    "hero": "heroes",
    "echo": "echoes",
    "tomato": "tomatoes",
    "potato": "potatoes",
    "mango": "mangoes",
    "mosquito": "mosquitoes",
}
# Endings and their plurals: for a tooth, a wisdom tooth and an eyetooth.
ENDS = {
    "woman": "women",
    "mouse": "mice",
    "tooth": "teeth",
    "child": "children",
    "knife": "knives",
    "calf": "calves",
    "elf": "elves",  # shelf, too
    "half": "halves",
    "leaf": "leaves",
    "loaf": "loaves",
    "thief": "thieves",
    "wife": "wives",
    "wolf": "wolves",
}
MEN = re.compile(
    r"(air|bar|business|camera|crafts|door|fire|fisher|gentle|horse|police|post|rain"
    r"|repair|snow|spider|sports|super|trades)man"
)
# Plural equal to the singular, already plural, or not countable.
UNCHANGED = frozenset(
    "baggage bags binoculars broccoli cattle chopsticks dice drawers fish fishes heels jeans"
    " luggage people persons scissors shears sheep shorts skates skis slacks snowmen sockets"
    " sweatpants swimwear toast trousers".split()
)
VOWELS = "aeiou"


def plural(noun: str) -> str:
    """Return the plural of a lower-case noun; of several words, only the last one changes."""
    *before, last = noun.split(" ")
    return " ".join([*before, _plural_word(last)])


def _plural_word(word: str) -> str:
    if word in UNCHANGED:
        return word
    if word in IRREGULAR:
        return IRREGULAR[word]
    if MEN.fullmatch(word):
        return f"{word[:-3]}men"
    for end, ends in ENDS.items():
        if word.endswith(end):
            return word.removesuffix(end) + ends
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in VOWELS:
        return word[:-1] + "ies"
    return word + "s"


def forms_of(nouns: Iterable[str]) -> tuple[str, ...]:
    """Return every noun followed by its plural, without duplicates."""
    return tuple(dict.fromkeys(form for noun in nouns for form in (noun, plural(noun))))
