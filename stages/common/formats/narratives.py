"""Localized Narratives: people describe an image while they point at what they speak of.

The official files are JSON Lines, one narrative per line. Ours have the same format, but `image_id`
is the number in data/download, as text. Real lines may have no trace, utterances of zero duration,
points outside the image, or several words in one utterance; all of these are valid. A line of any
other format is broken.
Source: Pont-Tuset et al., "Connecting Vision and Language with Localized Narratives", and
google/localized-narratives.

Shape legend: P points of a trace. x and y are fractions of the image's width and height, origin
top-left; times are seconds from the start of the narrative.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float64

from stages.common.runtime.storage import parse_json

NAMED_IN_ERROR = 3  # broken lines that an error message lists
SHOWN = 80  # characters of a wrong value in a message
FARTHEST = 1.0  # sides of the image from its middle; pixels are farther
SLOWEST = 60.0  # seconds per word; milliseconds are about 400
HALF = re.compile("[\ud800-\udfff]")  # of a pair of code units; UTF-8 cannot have it
UNDECODED = re.compile("[\udc80-\udcff]|\0")  # a byte that is not UTF-8, or of UTF-16
FREE = 0  # category of a phrase that names no class
END_OF_SENTENCE = re.compile(r"(?<=[.!?])\s+")

Content = TypeVar("Content")


@dataclass(frozen=True)
class Utterance:
    """One or several words, spoken from `start` to `end` seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Narrative:
    """What a person said about an image and when, and where the pointer was.

    Attributes:
        dataset_id: mscoco_train2017, mscoco_val2017, Flickr30k, ADE20k, open_images, or another.
        image_id: id in the data set.
        annotator_id: id of the person.
        caption: the whole text.
        utterances: in spoken order.
        segments: parts of the trace, each float64 (P, 3): x, y, time. A new one begins each time
            the pointer returns to the image (with a margin of a tenth).
        voice_recording: path of the recording, if given.
    """

    dataset_id: str
    image_id: str
    annotator_id: int
    caption: str
    utterances: tuple[Utterance, ...]
    segments: tuple[np.ndarray, ...]
    voice_recording: str | None = None

    @property
    def trace(self) -> Float64[np.ndarray, "P 3"]:
        """Return the points of all segments."""
        return np.concatenate([np.zeros((0, 3)), *self.segments])


def in_time(trace: Float64[np.ndarray, "P 3"]) -> Float64[np.ndarray, "P 3"]:
    """Return the points in order of time."""
    return trace[np.argsort(trace[:, 2], kind="stable")]


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a narrative's text, in order."""
    return END_OF_SENTENCE.split(text)


def parse_narrative(line: str) -> Narrative:
    """Return the narrative of a line.

    Raises:
        ValueError: the line has another format; the message names the field.
    """
    content = _mapping(line)
    narrative = Narrative(
        _text(content, "dataset_id"),
        _text(content, "image_id"),
        int(_number(content, "annotator_id")),
        _text(content, "caption"),
        tuple(
            Utterance(_text(own, "utterance"), _number(own, "start_time"), _number(own, "end_time"))
            for own in _list(content, "timed_caption")
        ),
        tuple(_segment(points) for points in _list(content, "traces")),
        None if content.get("voice_recording") is None else _text(content, "voice_recording"),
    )
    _check_units(narrative)
    return narrative


def _check_units(narrative: Narrative) -> None:
    """Find pixels and milliseconds, of which the boxes of phrases would be made without a word."""
    trace, words = narrative.trace, len(narrative.caption.split())
    outside = np.abs(trace[:, :2] - 0.5).max(1, initial=0) > FARTHEST
    if outside.sum() > len(trace) / 2:
        raise ValueError(
            "traces: most points are outside the image; x and y are fractions of its sides"
        )
    latest = max([*trace[:, 2], *(own.end for own in narrative.utterances)], default=0)
    if latest > SLOWEST * max(words, 1):
        raise ValueError(f"{words} words take {latest:g} s; times are in seconds")


def parse_caption(line: str) -> tuple[str, str]:
    """Return the image id and the text of a line's narrative; raises as `parse_narrative` does."""
    content = _mapping(line)
    return _text(content, "image_id"), _text(content, "caption")


def _mapping(line: str) -> dict[str, Any]:
    content = parse_json(line)
    if not isinstance(content, dict):
        raise ValueError(f"expected a mapping, found {type(content).__name__}")
    return content


def _segment(points: Any) -> np.ndarray:
    try:
        rows = [[float(point[key]) for key in ("x", "y", "t")] for point in points]
        segment = np.array(rows, np.float64).reshape(-1, 3)
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise ValueError(f"traces: expected lists of points with x, y and t ({error!r})") from None
    if not np.isfinite(segment).all():
        raise ValueError("traces: a point is not finite")
    return segment


def _field(content: Any, key: str) -> Any:
    if not isinstance(content, dict) or key not in content:
        raise ValueError(f"{key} is missing")
    return content[key]


def _text(content: Any, key: str) -> str:
    value = _field(content, key)
    if not isinstance(value, str):
        raise ValueError(f"{key}: expected text, found {value!r:.{SHOWN}}")
    if HALF.search(value):
        raise ValueError(f"{key}: has half of a character: {value!r:.{SHOWN}}")
    return value


def _number(content: Any, key: str) -> float:
    value = _field(content, key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not _is_finite(value):
        raise ValueError(f"{key}: expected a number, found {value!r:.{SHOWN}}")
    return value


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # JSON's integers have no limit
        return False


def _list(content: Any, key: str) -> list:
    value = _field(content, key)
    if not isinstance(value, list):
        raise ValueError(f"{key}: expected a list, found {value!r:.{SHOWN}}")
    return value


def narrative_line(narrative: Narrative) -> str:
    """Return the narrative as a line of the official format, without line break."""
    content = {
        "dataset_id": narrative.dataset_id,
        "image_id": narrative.image_id,
        "annotator_id": narrative.annotator_id,
        "caption": narrative.caption,
        "timed_caption": [
            {"utterance": own.text, "start_time": own.start, "end_time": own.end}
            for own in narrative.utterances
        ],
        "traces": [
            [{"x": x, "y": y, "t": t} for x, y, t in segment.tolist()]
            for segment in narrative.segments
        ],
        "voice_recording": narrative.voice_recording,
    }
    return json.dumps(content, ensure_ascii=False, allow_nan=False)


@dataclass
class NarrativeReader:
    """Reads files of narratives line by line and records the broken lines.

    Attributes:
        max_broken_fraction: largest accepted fraction of broken lines, 0..1.
        num_lines: non-empty lines read so far.
        broken: file, line number and reason of each broken line.
    """

    max_broken_fraction: float
    num_lines: int = 0
    broken: list[str] = field(default_factory=list)

    def read(self, paths: Iterable[Path]) -> Iterator[Narrative]:
        """Yield the narratives of all files, in order; empty lines do not count.

        Raises:
            FileNotFoundError: a file does not exist.
            ValueError: after the last line, if too many lines of all files are broken.
        """
        return self._parse(paths, parse_narrative)

    def read_captions(self, paths: Iterable[Path]) -> Iterator[tuple[str, str]]:
        """Yield the image id and the text of each narrative; as `read` otherwise."""
        return self._parse(paths, parse_caption)

    def _parse(self, paths: Iterable[Path], parse: Callable[[str], Content]) -> Iterator[Content]:
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f"{path.absolute()}: no such file of Localized Narratives")
            with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
                for number, line in enumerate(file, 1):
                    if not line.strip():
                        continue
                    self.num_lines += 1
                    try:
                        if UNDECODED.search(line):
                            raise ValueError("is not UTF-8; save the file as UTF-8")
                        yield parse(line)
                    except ValueError as error:
                        self.broken.append(f"{path}, line {number}: {error}")
        if len(self.broken) > self.max_broken_fraction * self.num_lines:
            first = "; ".join(self.broken[:NAMED_IN_ERROR])
            raise ValueError(
                f"{len(self.broken)} of {self.num_lines} lines are not Localized Narratives, more"
                f" than a fraction of {self.max_broken_fraction:g}: {first}; fetch the files again,"
                " fix these lines, or raise download.max_skipped_fraction of params.yaml"
            )
