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
from stages.phrases.noun_phrases import WORD
from stages.phrases.params import TraceParams, WindowParams

NOT_SPOKEN, NO_TRACE, FEW_POINTS, SMALL, LARGE = (
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


def align(caption: str, utterances: Sequence[Utterance]) -> list[tuple[int, int] | None]:
    """Return the characters [start, end) of the caption that each utterance says, in their order.

    Both are texts of one person's speech, but written down twice: words of one may be missing in
    the other, or be written otherwise. None of an utterance that the caption has no word of.
    """
    words = list(WORD.finditer(caption))
    written = [match.group().lower() for match in words]
    spoken = [
        (word.lower(), index)
        for index, utterance in enumerate(utterances)
        for word in WORD.findall(utterance.text)
    ]
    matcher = SequenceMatcher(None, written, [word for word, _ in spoken], autojunk=False)
    spans: list[tuple[int, int] | None] = [None] * len(utterances)
    for block in matcher.get_matching_blocks():
        for offset in range(block.size):
            match, index = words[block.a + offset], spoken[block.b + offset][1]
            known = spans[index]
            spans[index] = (known[0] if known else match.start(), match.end())
    return spans


def time_window(
    start: int,
    end: int,
    utterances: Sequence[Utterance],
    spans: Sequence[tuple[int, int] | None],
    params: WindowParams,
) -> tuple[float, float] | None:
    """Return the seconds when characters [start, end) were said, widened; None if they were not.

    An utterance of several words counts as a whole, for nothing tells when each was said.
    """
    own = [
        utterance
        for utterance, span in zip(utterances, spans, strict=True)
        if span is not None and span[0] < end and span[1] > start
    ]
    if not own:
        return None
    first, last = min(u.start for u in own), max(max(u.start, u.end) for u in own)
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
        params: what is cut off, and which boxes are none.
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
    if sides.min() < params.min_side:
        return Located(*facts, reason=SMALL)
    if sides.prod() > params.max_area:
        return Located(*facts, reason=LARGE)
    height, width = image_hw
    box = np.concatenate([low, high]) * [width, height, width, height]
    return Located(*facts, box.astype(np.float32))
