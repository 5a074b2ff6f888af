"""Phrases of narratives: where they stand, when they are said, and the box of the pointer then."""

import json
import re
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

import stages.phrases.__main__ as stage
from stages.common.formats.captions import MentionFinder
from stages.common.formats.categories import Category
from stages.common.formats.images import write_images
from stages.common.formats.narratives import (
    FREE,
    Narrative,
    NarrativeReader,
    Utterance,
    in_time,
    parse_narrative,
)
from stages.common.runtime.params import read_section
from stages.common.runtime.storage import write_json
from stages.download.narrative_shards import write_narratives
from stages.download.sources.coco.classes import PARTS, coco_category
from stages.download.sources.open_images.classes import open_images_categories
from stages.download.sources.scenes.classes import scene_categories
from stages.phrases.narrated import Narrated, narrated_phrases, with_names
from stages.phrases.noun_phrases import (
    Phrase,
    find_by_pattern,
    find_by_spacy,
    make_parser,
    make_phrase,
)
from stages.phrases.params import PhrasesParams, TraceParams, WindowParams
from stages.phrases.traces import (
    DENIED,
    FEW_POINTS,
    LARGE,
    NO_TRACE,
    NOT_SPOKEN,
    SMALL,
    align,
    locate,
    time_window,
)
from tests.support.tiny_detector import CATEGORIES, make_image

PARAMS = {
    "parser": "pattern",
    "spacy_model": "en_core_web_sm",
    "window": {"before": 0.0, "after": 0.0},
    "box": {"trim_fraction": 0.0, "min_points": 2, "min_side": 0.02, "max_area": 0.9},
}
BOX = TraceParams(**PARAMS["box"])
NO_MARGIN = WindowParams(before=0.0, after=0.0)
CUP = Category(1, "cup", "base", ("cup", "cups"))
BIRD = Category(2, "bird", "novel", ("bird", "birds"))
# The words of three published narratives (google/localized-narratives, CC BY 4.0).
REAL = {
    "In this image there are some persons standing at right side of this image and there are some"
    " lights are arranged at top of this image. There are some cabins as we can see at left side of"
    " this image and there is a floor at bottom of this image.": [
        "persons",
        "lights",
        "cabins",
        "floor",
    ],
    "In the image we can see girl standing and holding a doll in her hand. These are the road cone."
    " There are even other people who are getting into airplane, there is a building. This is a"
    " tree and sky.": [
        "girl",
        "doll",
        "hand",
        "road cone",
        "people",
        "airplane",
        "building",
        "tree",
        "sky",
    ],
    "In this image on the left side I can see a bed and a window.": ["bed", "window"],
}


def texts(text: str) -> list[str]:
    return [text[p.start : p.end] for p in find_by_pattern(text)]


@pytest.mark.parametrize("text", REAL, ids=[words[0] for words in REAL.values()])
def test_phrases_of_real_narratives(text):
    assert texts(text) == REAL[text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("There is a small red cup on the table.", ["small red cup"]),
        ("two T-shirts hanging near the tennis player's bag", ["T-shirts", "tennis player's bag"]),
        ("a cup, plates and a bed covered with sheets", ["cup", "plates", "bed", "sheets"]),
        ("The wall is white and the background is blurred", ["wall"]),
        ("", []),
        ("in the left side of the image", []),
    ],
)
def test_phrases_by_pattern(text, expected):
    assert [p for p in texts(text) if p != "table"] == expected


def test_a_phrase_says_whether_it_speaks_of_several_and_where_its_article_begins():
    text = "I see two red cups and a bird"
    assert find_by_pattern(text) == [Phrase(10, 18, 6, True), Phrase(25, 29, 23, False)]
    assert text[10:18] == "red cups" and text[6:9] == "two" and text[25:29] == "bird"


@pytest.mark.parametrize(
    ("text", "spoken", "several"),
    [
        ("there are group of cows standing", "group of cows", True),  # of a published narrative
        ("a group of cows", "a group of cows", True),
        ("I see a lot of cows", "a lot of cows", True),
        ("a couple of the cows", "a couple of the cows", True),
        ("A large number of cows", "A large number of cows", True),
        ("some of the cows", "some of the cows", True),
        ("a few cows", "a few cows", True),
        ("a pair of shoes", "a pair of shoes", True),
        ("a pair of scissors", "a pair of scissors", False),
        ("two scissors", "two scissors", True),
        ("one of the cows", "one of the cows", False),
        ("a part of a cow", "a cow", False),
        ("the cows", "the cows", True),
        ("other people", "other people", True),
        ("glasses", "glasses", False),
        ("a glass", "a glass", False),
        ("the cow's bus", "the cow's bus", False),
        ("a rhinoceros", "a rhinoceros", False),
        ("the rhinoceros", "the rhinoceros", False),
        ("a pair of skis", "a pair of skis", False),
        ("two policemen", "two policemen", True),
        ("gentlemen", "gentlemen", True),
        ("the specimen", "the specimen", False),
        ("bikinis", "bikinis", True),
        ("the oxen", "the oxen", True),
        ("one of these cups", "one of these cups", False),
        ("each of the three cups", "each of the three cups", False),
        ("the number of the bus", "the bus", False),
        ("a number of buses", "a number of buses", True),
    ],
)
def test_amounts_and_plurals_speak_of_several(text, spoken, several):
    (phrase,) = find_by_pattern(text)
    assert text[phrase.spoken_from : phrase.end] == spoken and phrase.several is several
    assert not {"of", "the", "two"} & set(text[phrase.start : phrase.end].split())


def test_without_spacy_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    with pytest.raises(ModuleNotFoundError, match=r"phrases\.parser: .*'some model'.*to pattern"):
        make_parser(PhrasesParams(**(PARAMS | {"parser": "spacy", "spacy_model": "some model"})))


def test_phrases_by_spacy_are_its_noun_chunks():
    """Of a stand-in that has what is used of spaCy's documents: chunks of tokens."""
    text = "it shows two red cups in the background and a group of birds"

    class Chunk(list):
        @property
        def root(self):
            return self[-1]

    def token(word: str, pos: str = "NOUN") -> SimpleNamespace:
        return SimpleNamespace(text=word, idx=text.index(word), pos_=pos)

    chunks = [
        Chunk([token("it", "PRON")]),
        Chunk([token("two"), token("red"), token("cups")]),
        Chunk([token("the"), token("background")]),
        Chunk([token("group")]),
        Chunk([token("birds")]),
    ]
    found = find_by_spacy(text, lambda text: SimpleNamespace(noun_chunks=chunks))
    assert found == [Phrase(13, 21, 9, True), Phrase(55, 60, 44, True)]
    assert text[13:21] == "red cups" and text[44:60] == "a group of birds"


def utterances(*spoken: tuple[str, float, float]) -> list[Utterance]:
    return [Utterance(*one) for one in spoken]


def test_utterances_find_their_words_in_a_text_written_otherwise():
    text = "In this image, there are two CUPS. A bird"
    spoken = utterances(
        ("In this", 0, 1), ("image", 1, 2), ("uhm", 2, 3), ("are two cups.", 3, 4), ("A bird", 4, 5)
    )
    found = {text[own.start : own.end]: own.utterance.text for own in align(text, spoken)}
    assert found == {
        "In": "In this",
        "this": "In this",
        "image": "image",
        "there": "uhm",  # where one word differs, it is the same one
        "are": "are two cups.",
        "two": "are two cups.",
        "CUPS": "are two cups.",
        "A": "A bird",
        "bird": "A bird",
    }


def window_of(text: str, start: int, end: int, spoken: list[Utterance], before=0.0, after=0.0):
    params = WindowParams(before=before, after=after)
    return time_window(Phrase(start, end, start, False), align(text, spoken), params)


def test_what_no_utterance_says_has_no_time():
    text = "There is a cup on the table and a chair on the floor"
    spoken = utterances(("There is a cup", 0, 1), ("on the floor", 3, 4))
    times = {
        text[p.start : p.end]: time_window(p, align(text, spoken), NO_MARGIN)
        for p in find_by_pattern(text)
    }
    assert times == {"cup": (0, 1), "table": None, "chair": None, "floor": (3, 4)}


def test_an_article_alone_is_no_phrase():
    text = "I see a puppy"
    (phrase,) = find_by_pattern(text)
    assert time_window(phrase, align(text, utterances(("I see a", 0, 1))), NO_MARGIN) is None
    spoken = utterances(("I see a", 0, 1), ("pappy", 3, 4))  # one word, written otherwise
    assert time_window(phrase, align(text, spoken), NO_MARGIN) == (0, 4)


def test_apostrophes_of_both_kinds_are_one():
    assert len(align("a man’s hat", utterances(("a man's hat", 0, 1)))) == 3


def test_the_window_is_of_all_utterances_that_have_a_word_of_the_phrase():
    spoken = utterances(("a", 0, 1), ("red", 1, 1), ("cup and", 1, 2.5), ("a bird", 2.5, 4))
    text, margins = "a red cup and a bird", (0.25, 0.5)
    assert window_of(text, 2, 9, spoken, *margins) == (0.75, 3.0)
    assert window_of(text, 0, 1, spoken, *margins) == (0.0, 1.5)  # no time before the first
    assert window_of(text, 0, 1, [], *margins) is None


# An Open Images record as a preview of the data set shows it, without trace and without ends from
# the eighth utterance on; each ends when the next one begins, as the first seven do (CC BY 4.0).
SPOKEN = (
    "In 0|this image there are some persons 1|standing 1.2|at 2.2|right 2.4|side 2.5|of 2.8"
    "|this 2.8|image 3|and 3.5|there are 4.9|some 5.3|lights 5.4|are 5.8|arranged 5.9|at 6.5"
    "|top of 6.8|this 6.8|image. There are some 7.2|cabins 7.6|as 12.9|we 13.5|can 13.5|see 14"
    "|at 14|left 14.4|side of 14.4|this 14.6|image 15.2|and 15.3|there 18.9|is 19.1|a 19.3"
    "|floor 19.4|at 19.7|bottom 20.4|of 20.9|this 20.9|image. 21.2"
)


def test_a_real_narrative_from_its_line_to_the_windows_of_its_phrases(tmp_path):
    texts, starts = zip(*(own.rsplit(" ", 1) for own in SPOKEN.split("|")), strict=True)
    times = [*map(float, starts), 21.2]
    content = {
        "dataset_id": "open_images",
        "image_id": "6375c17e61428d75",
        "annotator_id": 96,
        "caption": next(iter(REAL)),
        "timed_caption": [
            {"utterance": text, "start_time": start, "end_time": end}
            for text, start, end in zip(texts, times, times[1:], strict=False)
        ],
        "traces": [],
        "voice_recording": None,
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(content))
    (own,) = NarrativeReader(0.0).read([tmp_path / "a.jsonl"])
    spoken = align(own.caption, own.utterances)
    assert len(spoken) == len(own.caption.split())
    assert {
        own.caption[p.start : p.end]: time_window(p, spoken, NO_MARGIN)
        for p in find_by_pattern(own.caption)
    } == {"persons": (1, 1.2), "lights": (5.3, 5.8), "cabins": (7.2, 12.9), "floor": (19.3, 19.7)}


@given(
    st.lists(st.tuples(st.integers(1, 3), st.floats(0, 9)), min_size=1, max_size=8),
    st.integers(0, 23),
    st.integers(0, 23),
)
def test_the_window_is_from_the_first_to_the_last_utterance_of_a_phrase(spoken, first, last):
    """Of utterances of one to three words, and a phrase of any words in their order."""
    owner = [k for k, (count, _) in enumerate(spoken) for _ in range(count)]
    first, last = sorted(min(at, len(owner) - 1) for at in (first, last))
    words = [f"w{k}" for k in range(len(owner))]
    ends = np.cumsum([seconds for _, seconds in spoken]).tolist()
    uttered = [
        Utterance(" ".join(w for w, own in zip(words, owner, strict=True) if own == k), start, end)
        for k, (start, end) in enumerate(zip([0.0, *ends], ends, strict=False))
    ]
    text = ", ".join(words)
    place, behind = text.index(words[first]), text.index(words[last]) + len(words[last])
    window = window_of(text, place, behind, uttered)
    assert window == (uttered[owner[first]].start, uttered[owner[last]].end)


@given(
    st.lists(st.floats(0, 9), min_size=1, max_size=8),
    st.integers(0, 7),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_the_window_has_the_utterance_and_grows_with_its_margins(lasts, at, before, after):
    ends = np.cumsum(lasts).tolist()
    spoken = [
        Utterance(f"w{k}", end - last, end)
        for k, (last, end) in enumerate(zip(lasts, ends, strict=True))
    ]
    text, at = " ".join(u.text for u in spoken), min(at, len(spoken) - 1)
    place = text.index(f"w{at}")
    low, high = window_of(text, place, place + 2, spoken, before, after)
    assert low == max(spoken[at].start - before, 0.0)
    assert high == max(spoken[at].start, spoken[at].end) + after


TRACE = np.array(
    [[0.1, 0.1, 0.0], [0.2, 0.3, 1.0], [0.5, 0.4, 2.0], [0.4, 1.2, 3.0], [-0.1, 0.5, 4.0]]
)


def test_the_box_is_that_of_the_points_in_the_window_within_the_image():
    found = locate(TRACE, (1.0, 3.0), (100, 200), BOX)
    assert found.box_xyxy.tolist() == pytest.approx([40, 30, 100, 100])
    assert (found.first, found.num_points, found.reason) == (1, 3, "")
    assert locate(TRACE, (3.5, 9.0), (100, 200), BOX).reason == FEW_POINTS
    assert locate(TRACE[:0], (0.0, 9.0), (100, 200), BOX).reason == NO_TRACE


@given(
    st.lists(
        st.tuples(st.floats(-0.2, 1.2), st.floats(-0.2, 1.2), st.floats(0, 9)),
        min_size=1,
        max_size=20,
    ),
    st.tuples(st.floats(0, 9), st.floats(0, 9)).map(sorted),
    st.floats(0, 0.4),
)
def test_a_box_is_within_the_points_of_its_window(points, window, trim):
    trace = in_time(np.array(points))
    params = BOX.model_copy(update={"trim_fraction": trim})
    found = locate(trace, tuple(window), (100, 200), params)
    own = trace[(trace[:, 2] >= window[0]) & (trace[:, 2] <= window[1])]
    assert found.num_points == len(own)
    assert np.array_equal(trace[found.first : found.first + found.num_points], own)
    assert (found.box_xyxy is None) == (found.reason != "")
    if found.box_xyxy is not None:
        scale = np.array([200, 100])
        shown = np.clip(own[:, :2], 0, 1) * scale
        low, high = found.box_xyxy[:2], found.box_xyxy[2:]
        assert (low >= shown.min(0) - 1e-4).all() and (high <= shown.max(0) + 1e-4).all()
        assert ((high - low) / scale >= BOX.min_side - 1e-4).all()
        assert np.prod((high - low) / scale) <= BOX.max_area + 1e-4
        whole = locate(trace, tuple(window), (100, 200), BOX)
        if whole.box_xyxy is not None:
            assert whole.box_xyxy.tolist() == pytest.approx(
                [*shown.min(0), *shown.max(0)], abs=1e-3
            )
    elif len(own) < BOX.min_points:
        assert found.reason == FEW_POINTS
    else:
        assert found.reason in (SMALL, LARGE)


def test_outermost_points_are_cut_off():
    line = np.stack([np.linspace(0, 1, 101), np.linspace(0.2, 0.4, 101), np.arange(101.0)], 1)
    trimmed = BOX.model_copy(update={"trim_fraction": 0.05})
    assert locate(line, (0.0, 100.0), (100, 100), trimmed).box_xyxy.tolist() == pytest.approx(
        [5, 21, 95, 39], abs=1e-4
    )


def test_boxes_of_no_size_and_of_the_whole_image_are_none():
    still = np.array([[0.5, 0.5, 0.0], [0.51, 0.9, 1.0]])
    assert locate(still, (0.0, 1.0), (100, 100), BOX).reason == SMALL
    whole = np.array([[0.0, 0.0, 0.0], [1.0, 0.95, 1.0]])
    assert locate(whole, (0.0, 1.0), (100, 100), BOX).reason == LARGE


def narrative(image_id: int, words: str, trace: np.ndarray) -> Narrative:
    """Return one where each word takes a second."""
    spoken = [Utterance(word, k, k + 1) for k, word in enumerate(words.split())]
    return Narrative("mine", str(image_id), 1, words, tuple(spoken), (trace,))


def path(*boxes: tuple[float, float, float, float]) -> np.ndarray:
    """Return a trace that for a second each goes round in boxes, fractions of the image."""
    points = []
    for second, (x0, y0, x1, y1) in enumerate(boxes):
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        points += [(x, y, second + 0.2 * k + 0.1) for k, (x, y) in enumerate(corners)]
    return np.array(points)


A, B, C = (0.1, 0.1, 0.3, 0.4), (0.5, 0.5, 0.9, 0.9), (0.2, 0.6, 0.4, 0.8)


def test_phrases_have_class_box_and_lineage():
    said = narrative(4, "Cups there. A cup holder", path(A, B, C, A, B))
    found = narrated_phrases(
        said, 0, (100, 100), find_by_pattern, MentionFinder([CUP, BIRD]), PhrasesParams(**PARAMS)
    )
    assert [(p.text, p.category_id, p.sentence) for p in found] == [
        ("cups", 1, "Cups there."),
        ("cup holder", FREE, "A cup holder"),
    ]
    assert found[0].located.box_xyxy.tolist() == pytest.approx([10, 10, 30, 40])
    assert (found[1].start, found[1].end) == (14, 24)
    assert found[1].located.window == (2.0, 5.0) and found[1].located.num_points == 12


def test_a_name_that_the_parser_takes_for_no_phrase_is_one():
    said = narrative(4, "seeing cups", path(A, B))
    found = narrated_phrases(
        said, 0, (100, 100), lambda text: [], MentionFinder([CUP]), PhrasesParams(**PARAMS)
    )
    assert [(p.text, p.category_id, p.several) for p in found] == [("cups", 1, True)]


def said_of(words: str, *categories: Category) -> list[Narrated]:
    said = narrative(4, words, path(*[A] * len(words.split())))
    finder = MentionFinder(categories or [CUP, BIRD])
    return narrated_phrases(said, 0, (100, 100), find_by_pattern, finder, PhrasesParams(**PARAMS))


@pytest.mark.parametrize(
    "words",
    ["there is no cup", "a bird without a cup", "neither cup", "a bird but not the two cups"],
)
def test_what_is_said_not_to_be_there_has_neither_class_nor_box(words):
    (cup,) = [own for own in said_of(words) if "cup" in own.text]
    assert (cup.category_id, cup.located.box_xyxy, cup.located.reason) == (FREE, None, DENIED)
    assert all(own.category_id == BIRD.id for own in said_of(words) if own.text == "bird")


def test_an_attribute_of_another_thing_is_not_the_thing():
    assert not [own for own in said_of("I see a cup light") if own.category_id != FREE]
    sign = Category(3, "sign", "base", ("sign", "parking sign"))
    assert [own.category_id for own in said_of("a no parking sign", sign)] == [3]


@pytest.mark.parametrize("source", ["scenes", "coco", "open_images"])
def test_every_name_of_every_class_can_be_a_phrase_of_it(source):
    """Whatever words it is made of: "trash can", "chest of drawers", "washing machine"."""
    categories = {
        "scenes": lambda: scene_categories(0),
        "coco": lambda: [
            coco_category(k, name) for k, name in enumerate(chain(*PARTS.values()), 1)
        ],
        "open_images": open_images_categories,
    }[source]()
    finder = MentionFinder(categories)
    missed = []
    for category in categories:
        for form in category.forms:
            text = f"In this image there is the {form} on the floor."
            named = {m.category_id for m in finder.find(text)}
            found = with_names(text, find_by_pattern(text), finder.find(text))
            ends = {m.end: m.category_id for m in finder.find(text)}
            labelled = {ends[p.end] for p in found if p.end in ends}
            if category.split != "excluded" and category.id in named - labelled:
                missed.append(form)
    assert not missed


def test_what_was_never_spoken_has_no_box():
    said = narrative(4, "a cup", path(A, B))
    said = Narrative("mine", "4", 1, "a bird", said.utterances[1:], said.segments)
    found = narrated_phrases(
        said, 0, (100, 100), find_by_pattern, MentionFinder([BIRD]), PhrasesParams(**PARAMS)
    )
    assert [p.located.reason for p in found] == [NOT_SPOKEN]


def test_the_stage_writes_every_phrase_of_a_shard_with_its_lineage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    YAML(typ="safe").dump({"phrases": PARAMS}, tmp_path / "params.yaml")
    download = tmp_path / "data/download"
    write_json(download / "categories.json", CATEGORIES)
    write_images(download / "images/train/1.parquet", map(make_image, [3, 4]))
    said = narrative(3, "a disc under a pale moon", path(A, A, B, C, B, A))
    others = [narrative(image_id, "a moon", path(A, B)) for image_id in (4, 3)]
    write_narratives(download / "narratives/train/1.jsonl", [said, *others])
    stage.main("1")
    table = pq.read_table(tmp_path / "data/phrases/1.parquet").to_pylist()
    assert [(row["image_id"], row["narrative"], row["phrase"]) for row in table] == [
        (3, 0, "disc"),
        (3, 0, "pale moon"),
        (4, 0, "moon"),
        (3, 1, "moon"),
    ]
    assert [row["category_id"] for row in table] == [3, FREE, FREE, FREE]
    assert table[0]["seconds_from"] == 0.0 and table[0]["points"] == 8
    write_narratives(download / "narratives/train/1.jsonl", [])
    stage.main("1")  # where nobody pointed there is no phrase
    assert pq.read_table(tmp_path / "data/phrases/1.parquet").num_rows == 0


def test_a_mark_alone_may_be_a_phrase():
    assert not make_phrase("50 % of it", 3, 4, 3).several


def test_the_example_of_the_page_gives_a_box_with_the_default_settings(repository):
    page = (repository / "docs/phrases.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```text\n(\{.*?)```", page, re.DOTALL)
    narrative = replace(parse_narrative(" ".join(example.splitlines())), image_id="1")
    params = read_section("phrases", PhrasesParams, repository / "params.yaml")
    finder, parse = MentionFinder([CUP, BIRD]), make_parser(params)
    (cup,) = narrated_phrases(narrative, 0, (100, 200), parse, finder, params)
    assert (cup.text, cup.category_id, cup.located.reason) == ("cup", CUP.id, "")
    # The cup is at 0.21 to 0.38 across and 0.40 to 0.62 down; the box is trimmed a little.
    assert cup.located.box_xyxy == pytest.approx([42, 40, 76, 62], abs=1)
