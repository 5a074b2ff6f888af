"""The phrases of a narrative, with class, box, and where each of them comes from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from stages.common.formats.captions import Mention, MentionFinder
from stages.common.formats.narratives import END_OF_SENTENCE, FREE, Narrative, in_time
from stages.common.formats.tables import boxes_table
from stages.phrases.noun_phrases import Parser, Phrase, goes_on, is_denied, make_phrase
from stages.phrases.params import PhrasesParams
from stages.phrases.traces import DENIED, NOT_SPOKEN, Located, align, locate, time_window


@dataclass(frozen=True)
class Narrated:
    """A phrase and its lineage.

    Attributes:
        image_id: of the image.
        narrative: its place among the image's narratives in the file of the shard, from 0.
        text: the phrase, in lower case.
        start: of the characters [start, end) of the narrative's text.
        end: of these.
        sentence: that it stands in.
        category_id: of the class that its last words name, or FREE.
        several: it speaks of more than one.
        located: when it was said, and the points then.
    """

    image_id: int
    narrative: int
    text: str
    start: int
    end: int
    sentence: str
    category_id: int
    several: bool
    located: Located


def narrated_phrases(
    narrative: Narrative,
    place: int,
    image_hw: tuple[int, int],
    parse: Parser,
    finder: MentionFinder,
    params: PhrasesParams,
) -> list[Narrated]:
    """Return the phrases of a narrative, the `place`-th of its image, in order.

    A phrase is of a class if its end names it: "red cup" is a cup, "cup holder" is not. What is
    said not to be there, as in "no cup", has no class and no box.
    """
    text = narrative.caption
    mentions = finder.find(text)
    ends = {m.end: m for m in mentions}
    spoken, trace = align(text, narrative.utterances), in_time(narrative.trace)
    found = []
    for phrase in with_names(text, parse(text), mentions):
        mention, category_id = ends.get(phrase.end), FREE
        if mention is not None and mention.start >= phrase.start:
            category_id = mention.category_id
        window = time_window(phrase, spoken, params.window)
        if is_denied(text, phrase):
            located, category_id = Located((0.0, 0.0), reason=DENIED), FREE
        elif window is None:
            located = Located((0.0, 0.0), reason=NOT_SPOKEN)
        else:
            located = locate(trace, window, image_hw, params.box)
        found.append(
            Narrated(
                int(narrative.image_id),
                place,
                text[phrase.start : phrase.end].lower(),
                phrase.start,
                phrase.end,
                _sentence(text, phrase.start),
                category_id,
                phrase.several,
                located,
            )
        )
    return found


def with_names(text: str, phrases: list[Phrase], mentions: Sequence[Mention]) -> list[Phrase]:
    """Return the phrases in order, none of which ends or begins within the name of a class.

    The parser may cut a name that contains a word of a closed class or a participle, such as "trash
    can", "chest of drawers" and "washing machine"; phrases that a name crosses become one with it.
    Where there is no phrase at all around a name, the name is one, unless another noun follows
    ("a car light" is no car).
    """
    for mention in mentions:
        near = [p for p in phrases if p.start < mention.end and mention.start < p.end]
        if any(p.start <= mention.start and mention.end <= p.end for p in near):
            continue
        if not near and goes_on(text, mention.end):
            continue
        start = min([mention.start, *(p.start for p in near)])
        end = max([mention.end, *(p.end for p in near)])
        begun = min([start, *(p.spoken_from for p in near)])
        others = [p for p in phrases if p not in near]
        phrases = [*others, make_phrase(text, start, end, begun)]
    return sorted(phrases, key=lambda own: own.start)


def make_table(phrases: Sequence[Narrated]) -> pa.Table:
    """Return a row per phrase: narrative, text, class, sentence, characters, seconds, points, box.

    `narrative` counts the narratives of the row's image from 0, in the order of the shard's file,
    which has all of them. `first_point` and `points` count in its trace in order of time. Without a
    box the corners are not a number, and `reason` says why.
    """
    none = np.full(4, np.nan, np.float32)
    boxes = [none if p.located.box_xyxy is None else p.located.box_xyxy for p in phrases]
    windows = np.array([p.located.window for p in phrases], np.float64).reshape(-1, 2)
    return boxes_table(
        np.array([p.image_id for p in phrases], np.int64),
        np.array(boxes, np.float32).reshape(-1, 4),
        narrative=pa.array([p.narrative for p in phrases], pa.int64()),
        phrase=pa.array([p.text for p in phrases], pa.string()),
        category_id=pa.array([p.category_id for p in phrases], pa.int64()),
        several=pa.array([p.several for p in phrases], pa.bool_()),
        sentence=pa.array([p.sentence for p in phrases], pa.string()),
        start=pa.array([p.start for p in phrases], pa.int64()),
        end=pa.array([p.end for p in phrases], pa.int64()),
        seconds_from=pa.array(windows[:, 0]),
        seconds_to=pa.array(windows[:, 1]),
        first_point=pa.array([p.located.first for p in phrases], pa.int64()),
        points=pa.array([p.located.num_points for p in phrases], pa.int64()),
        reason=pa.array([p.located.reason for p in phrases], pa.string()),
    )


def _sentence(text: str, place: int) -> str:
    """Return the sentence around a character."""
    ends = list(END_OF_SENTENCE.finditer(text))
    start = max((m.end() for m in ends if m.end() <= place), default=0)
    end = min((m.start() for m in ends if m.start() > place), default=len(text))
    return text[start:end]
