"""From a phrase to the time when it was said, to the points of the trace then, to a box.

Source: "Scaling up Instance Segmentation using Approximately Localized Phrases", whose poster says
that a phrase is "paired with boxes derived from mouse scribbles" and no more. The steps are ours:
all points from the phrase's first word to its last, a little later as the hand trails the voice,
with the outermost ones of each axis cut off.

Frames: trace points are fractions of the image's width and height, seconds in time; boxes are
corners in pixels. P points of a trace.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
from jaxtyping import Float32, Float64

from stages.common.formats.narratives import Utterance
from stages.common.geometry.boxes import SMALLEST_SIDE
from stages.phrases.noun_phrases import WORD, Phrase
from stages.phrases.params import TraceParams, WindowParams

DENIED, NOT_SPOKEN, NO_TRACE, FEW_POINTS, SMALL, LARGE = (
    "it is said not to be there",
    "no utterance has it",
    "the narrative has no trace",
    "too few points",
    "too small",
    "too large",
)


@dataclass(frozen=True)
class Located:
    """Where the pointer was during a phrase.

    Attributes:
        window: seconds.
        first: index of its first point in the trace in order of time; 0 if there is none.
        num_points: in the window.
        box_xyxy: pixels; None if there is none.
        reason: why there is none.
    """

    window: tuple[float, float]
    first: int = 0
    num_points: int = 0
    box_xyxy: Float32[np.ndarray, "4"] | None = None
    reason: str = ""


@dataclass(frozen=True)
class Spoken:
    """Characters [start, end) of a caption, one word, and the utterance that says it."""

    start: int
    end: int
    utterance: Utterance


def align(caption: str, utterances: Sequence[Utterance]) -> list[Spoken]:
    """Return the words of the caption that an utterance says, in order.

    Both are texts of one person's speech, but written down twice: words of one may be missing in
    the other, or be written otherwise. As many words that differ, between words that agree, are
    taken for the same ones.
    """
    words = list(WORD.finditer(caption))
    spoken = [(word, own) for own in utterances for word in WORD.findall(own.text)]
    matcher = SequenceMatcher(
        None,
        [_plain_word(match.group()) for match in words],
        [_plain_word(word) for word, _ in spoken],
        autojunk=False,
    )
    return [
        Spoken(*match.span(), own)
        for _, low, high, first, behind in matcher.get_opcodes()
        if high - low == behind - first
        for match, (_, own) in zip(words[low:high], spoken[first:behind], strict=True)
    ]


def _plain_word(word: str) -> str:
    return word.lower().replace("’", "'")


def time_window(
    phrase: Phrase, spoken: Sequence[Spoken], params: WindowParams
) -> tuple[float, float] | None:
    """Return the seconds when a phrase was said, widened; None if none of its words was.

    It begins with the phrase's article or amount. An utterance of several words counts as a whole,
    for nothing tells when each was said.
    """
    own = [word for word in spoken if word.start < phrase.end and word.end > phrase.spoken_from]
    if not any(word.end > phrase.start for word in own):
        return None
    first = min(word.utterance.start for word in own)
    last = max(max(word.utterance.start, word.utterance.end) for word in own)
    return max(first - params.before, 0.0), last + params.after


def locate(
    trace: Float64[np.ndarray, "P 3"],
    window: tuple[float, float],
    image_hw: tuple[int, int],
    params: TraceParams,
) -> Located:
    """Return the box of the points in a window.

    Args:
        trace: in order of time.
        window: seconds, both ends within.
        image_hw: pixels.
        params: what is cut off, and which boxes are none. None has a side below a pixel either.
    """
    if not len(trace):
        return Located(window, reason=NO_TRACE)
    first, behind = (
        np.searchsorted(trace[:, 2], window[0]),
        np.searchsorted(trace[:, 2], window[1], side="right"),
    )
    points = np.clip(trace[first:behind, :2], 0, 1)
    facts = window, int(first), len(points)
    if len(points) < params.min_points:
        return Located(*facts, reason=FEW_POINTS)
    low, high = np.quantile(points, [params.trim_fraction, 1 - params.trim_fraction], axis=0)
    sides = high - low
    height, width = image_hw
    if sides.min() < params.min_side or (sides * [width, height]).min() < SMALLEST_SIDE:
        return Located(*facts, reason=SMALL)
    if sides.prod() > params.max_area:
        return Located(*facts, reason=LARGE)
    box = np.concatenate([low, high]) * [width, height, width, height]
    return Located(*facts, box.astype(np.float32))
