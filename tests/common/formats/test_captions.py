"""Which words of a caption name an object, and which only look like it."""

import pytest

from stages.common.formats.captions import MentionFinder
from stages.download.sources.coco.classes import PARTS, coco_category

NAMES = [name for part in PARTS.values() for name in part]
COCO = [coco_category(number, name) for number, name in enumerate(NAMES, 1)]
FINDER = MentionFinder(COCO)


def named(caption: str) -> list[str]:
    return [NAMES[mention.category_id - 1] for mention in FINDER.find(caption)]


@pytest.mark.parametrize(
    ("caption", "names"),
    [
        ("An orange cat on a red chair.", ["cat", "chair"]),
        ("an orange and white cat", ["cat"]),
        ("A black and orange train", ["train"]),
        ("a yellow, orange kite in the sky", ["kite"]),
        ("The bus is orange.", ["bus"]),
        ("a woman dressed in orange", ["person"]),
        ("a truck, orange in color", ["truck"]),
        ("an orange colored vase", ["vase"]),
        ("an orange flying kite", ["kite"]),
        ("a glass of orange juice", []),
        ("A man trains for a race.", ["person"]),
        ("people train hard for the game", ["person"]),
        ("a boy learns to train his dog", ["person", "dog"]),
        ("the man ties his shoe", ["person"]),
        ("The teams tie the game", []),
        ("a couple on a remote beach", []),
        ("a remote-controlled car", ["car"]),
        ("a mountain that is very remote", []),
    ],
)
def test_adjectives_and_verbs_name_no_object(caption, names):
    assert named(caption) == names


@pytest.mark.parametrize(
    ("caption", "names"),
    [
        ("a bowl of oranges and an orange", ["bowl", "orange", "orange"]),
        ("an orange on a plate", ["orange"]),
        ("an orange", ["orange"]),
        ("A peeled orange, an apple and a banana", ["orange", "apple", "banana"]),
        ("a banana and orange sit on a table", ["banana", "orange"]),
        ("an orange and a knife", ["orange", "knife"]),
        ("an orange cut in half", ["orange"]),
        ("orange slices in a bowl", ["orange", "bowl"]),
        ("an orange floating in a sink", ["orange", "sink"]),
        ("a train", ["train"]),
        ("two trains at a station", ["train"]),
        ("passenger trains on the tracks", ["train"]),
        ("a man next to train tracks", ["person", "train"]),
        ("people on a train", ["person", "train"]),
        ("a kids train with red cars", ["person", "train", "car"]),
        ("a remote control", ["remote"]),
        ("a remote", ["remote"]),
        ("the remote is on the couch", ["remote", "couch"]),
        ("a tv, a remote and a book", ["tv", "remote", "book"]),
        ("two remotes beside a wii remote", ["remote", "remote"]),
        ("a man in a tie", ["person", "tie"]),
        ("a man with ties", ["person", "tie"]),
        ("a bear", ["bear"]),
    ],
)
def test_nouns_name_their_objects(caption, names):
    assert named(caption) == names


def test_words_that_are_not_listed_always_name_their_object():
    for name in {*PARTS["base"], *PARTS["novel"]} - {"orange", "remote"}:
        assert named(f"a {name} thing") == [name]
