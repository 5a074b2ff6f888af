"""Narratives of scenes: a simulated annotator describes the objects and points at each.

It stands for the annotators of Localized Narratives. The papers do not measure their habits, so all
numbers are ours, chosen to resemble the published examples: what an experiment may change is in
`download.scenes.annotator` of params.yaml, what is fixed stands below. While the annotator names an
object, the pointer circles in it: after a delay (lag), wider or narrower than the object (reach),
moving away from its centre (drift), with an unsteady hand (jitter), and sometimes in another object
(wrong_object_fraction). Then it travels to the next object. Stages that make labels see the trace,
never the masks that it was made from.

Frame: x and y are fractions of the image's sides, origin top-left; times are in seconds.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.common.formats.narratives import Narrative, Utterance
from stages.common.geometry.masks import mask_box
from stages.download.params import AnnotatorParams
from stages.download.sources.scenes.captions import name_objects
from stages.download.sources.scenes.draw import Scene

DATASET, ANNOTATOR_ID = "scenes", 0
OPENINGS = (
    "In this image there is",
    "In this image I can see",
    "In this image we can see",
    "Here we can see",
    "There is",
)
JOINTS = (", there is", " and", ". Beside it we can see", ". There is also", ", near it I can see")
ENDINGS = (
    "",
    ". In the background there are some shapes",
    ". The background is blurred",
    ". On the right side there is light",
    ". We can see some lines in the background",
)
# The voice
JOINED_WORDS = 0.15  # probability that a word joins the utterance of the word before
NO_TIME = 0.05  # probability that a word's utterance ends when it begins
WORD_SHAPE = 8  # of the gamma distribution of a word's seconds
PAUSE = 0.5  # mean seconds before an object is named
PAUSE_SHAPE = 2  # of the gamma distribution of these
# The pointer
SHORTEST_TURN = 0.2  # smallest number of seconds that it circles in an object
TRAVEL = 0.3  # smallest number of seconds from one object to the next
REACH = (0.2, 2.0)  # limits of the loops' radius as a fraction of half the object's sides
AFTER = 0.5  # seconds that it is recorded after the last word and turn
SMOOTHED = 5  # points of the moving average that makes it unsteady
MARGIN = 0.1  # fraction of the image's side around it in which the pointer is recorded
DIGITS = 4  # after the point, of coordinates and times, as in the official files


@dataclass(frozen=True)
class Turn:
    """The pointer circles in a box from `start` to `end`."""

    start: float
    end: float
    centre: np.ndarray  # (2,)
    half: np.ndarray  # (2,), half of the box's sides


def write_narrative(
    scene: Scene,
    image_id: int,
    params: AnnotatorParams,
    synonym_fraction: float,
    generator: np.random.Generator,
) -> Narrative:
    """Return what the simulated annotator says about a scene, and the trace of the pointer.

    Args:
        scene: what is described.
        image_id: of the scene.
        params: the annotator's habits.
        synonym_fraction: probability of a synonym if the class has one, in 0..1.
        generator: makes all random choices.
    """
    words, named = _speak(scene, synonym_fraction, generator)
    starts, ends = _times(words, named, params, generator)
    utterances = tuple(_utterances(words, starts, ends, generator))
    turns = [
        turn
        for (first, last), objects in named
        for turn in _turns(starts[first], ends[last], objects, scene, params, generator)
    ]
    points = _trace(turns, ends[-1], params, generator)
    return Narrative(
        DATASET,
        str(image_id),
        ANNOTATOR_ID,
        " ".join(words),
        utterances,
        tuple(_segments(points)),
    )


def _speak(
    scene: Scene, synonym_fraction: float, generator: np.random.Generator
) -> tuple[list[str], list[tuple[tuple[int, int], list[int]]]]:
    """Return all words, and for each phrase its first and last word and the objects it names."""
    kinds = list(dict.fromkeys(scene.classes))
    text, named = OPENINGS[generator.integers(len(OPENINGS))], []
    for place, at in enumerate(generator.permutation(len(kinds))):
        own = [k for k, kind in enumerate(scene.classes) if kind == kinds[at]]
        if place:
            text += JOINTS[generator.integers(len(JOINTS))]
        first = len(text.split())
        colours = [scene.colours[k] for k in own]
        text += f" {name_objects(kinds[at], colours, synonym_fraction, generator)}"
        named.append(((first, len(text.split()) - 1), own))
    text += f"{ENDINGS[generator.integers(len(ENDINGS))]}."
    return text.split(), named


def _times(
    words: Sequence[str],
    named: Sequence[tuple[tuple[int, int], list[int]]],
    params: AnnotatorParams,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return when each word begins and ends; the annotator pauses before naming an object."""
    lasts = generator.gamma(WORD_SHAPE, 1 / (WORD_SHAPE * params.words_per_second), len(words))
    pauses = np.zeros(len(words))
    pauses[[first for (first, _), _ in named]] = generator.gamma(
        PAUSE_SHAPE, PAUSE / PAUSE_SHAPE, len(named)
    )
    ends = np.cumsum(lasts + pauses)
    return np.round(ends - lasts, DIGITS), np.round(ends, DIGITS)


def _turns(
    start: float,
    end: float,
    objects: Sequence[int],
    scene: Scene,
    params: AnnotatorParams,
    generator: np.random.Generator,
) -> list[Turn]:
    """Return the pointer's turns for a phrase: one per object, some around a wrong object."""
    late = max(params.lag + params.noise * generator.normal(0, params.lag_deviation), 0.0)
    times, turns = np.linspace(start, end, len(objects) + 1) + late, []
    for k, own in enumerate(objects):
        others = [other for other in range(len(scene.classes)) if other != own]
        if others and generator.random() < params.wrong_object_fraction:
            own = int(generator.choice(others))
        side = np.array(scene.masks.shape[:0:-1])
        x0, y0, x1, y1 = mask_box(scene.masks[own])
        half = np.array([x1 - x0, y1 - y0]) / 2 / side
        spread = params.noise * generator.normal(0, params.reach_deviation, 2)
        reach = np.clip(params.reach + spread, *REACH)
        centre = np.array([x0 + x1, y0 + y1]) / 2 / side
        end_of_turn = max(times[k + 1], times[k] + SHORTEST_TURN)
        turns.append(Turn(times[k], end_of_turn, centre, half * reach))
    return turns


def _trace(
    turns: Sequence[Turn], end: float, params: AnnotatorParams, generator: np.random.Generator
) -> np.ndarray:
    """Return the pointer's points (P, 3) as x, y and time, inside and outside the image."""
    times = np.arange(0, max(end, turns[-1].end) + AFTER, 1 / params.points_per_second)
    known = np.zeros(len(times), bool)
    places = np.zeros((len(times), 2))
    last = -TRAVEL  # when the previous turn ended
    for turn in turns:
        arrives = max(turn.start, last + TRAVEL)
        last = turn.end
        during = (times >= arrives) & (times <= turn.end)
        if not during.any():
            during = np.arange(len(times)) == min(np.searchsorted(times, turn.end), len(times) - 1)
        passed = (times[during] - turn.start) / (turn.end - turn.start)
        rounds = max(1.0, (turn.end - turn.start) * params.loops_per_second)
        phase = generator.uniform(0, 2 * np.pi)
        angle = phase + generator.choice([-1, 1]) * 2 * np.pi * rounds * passed
        circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        drift = params.noise * generator.normal(0, params.drift, 2) * passed[:, None]
        places[during] = turn.centre + turn.half * (circle + drift)
        known |= during
    for axis in range(2):
        places[:, axis] = np.interp(times, times[known], places[known, axis])
    places += params.noise * params.jitter * _unsteady(len(times), generator)
    return np.round(np.concatenate([places, times[:, None]], axis=1), DIGITS)


def _unsteady(count: int, generator: np.random.Generator) -> np.ndarray:
    """Return smooth noise (count, 2) with standard deviation 1: a moving average."""
    noise = generator.normal(0, 1, (count + SMOOTHED - 1, 2))
    shifted = (noise[first : first + count] for first in range(SMOOTHED))
    return functools.reduce(np.add, shifted) / SMOOTHED**0.5


def _segments(points: np.ndarray) -> list[np.ndarray]:
    """Return the recorded points, split where the pointer was outside the margin."""
    there = np.all((points[:, :2] >= -MARGIN) & (points[:, :2] <= 1 + MARGIN), axis=1)
    pieces = np.split(np.arange(len(points)), np.flatnonzero(np.diff(there)) + 1)
    return [points[piece] for piece in pieces if there[piece[0]]]


def _utterances(
    words: Sequence[str], starts: np.ndarray, ends: np.ndarray, generator: np.random.Generator
) -> list[Utterance]:
    """Return the words as utterances: some joined, some of zero length in time."""
    found: list[Utterance] = []
    joined = generator.random(len(words)) < JOINED_WORDS
    empty = generator.random(len(words)) < NO_TIME
    for k, word in enumerate(words):
        start, end = float(starts[k]), float(starts[k] if empty[k] else ends[k])
        if k and joined[k]:
            last = found.pop()
            word, start, end = f"{last.text} {word}", last.start, float(ends[k])
        found.append(Utterance(word, start, end))
    return found
