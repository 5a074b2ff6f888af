"""What a detector learns from: one or several sources of labelled images.

Each object has weights of its class, box and mask (`LabelledImage.weights`). Either every batch
holds images of all sources, each in its fraction, or every batch comes from one source, which has
its fraction of the steps. The images of a step depend on (seed, step) alone.
"""

from argparse import ArgumentTypeError
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np

from stages.common.formats.categories import Category
from stages.common.formats.stored_images import AnyImage
from stages.common.runtime.seeding import derive_seed
from stages.models.detection.params import SupervisionParams
from stages.models.detection.samples import (
    LabelledImage,
    batch_rows,
    label_images,
    read_annotations,
)


@dataclass(frozen=True)
class Source:
    """Labelled images of one kind."""

    name: str
    images: Sequence[LabelledImage]
    fraction: float = 1.0  # of a batch's images, or of the steps, in (0, 1]
    skipped: Mapping[str, Sequence[int]] | None = None  # reason → ids of annotations left out
    shared_negatives: bool = False  # labels annotated in one image of a batch count for all

    def facts(self) -> dict[str, Any]:
        """Return what metrics.json reports of the source."""
        return {
            "images": len(self.images),
            "objects": sum(len(entry.segmentations) for entry in self.images),
            "skipped": {reason: len(ids) for reason, ids in (self.skipped or {}).items()},
        }


class Supervision:
    """Draws the batches of a training from its sources."""

    def __init__(
        self, sources: Sequence[Source], draw: Literal["together", "in_turn"] = "together"
    ) -> None:
        """Take at least one source, each with at least one image."""
        images = [image for source in sources for image in source.images]
        self.weighted = any(image.weights is not None for image in images)
        self.sources = [_with_weights(s) for s in sources] if self.weighted else list(sources)
        self.partial = any(image.annotated is not None for image in images)
        self._in_turn = draw == "in_turn"
        # For each step so far: its source, and how many steps that source had before.
        self._turns: list[tuple[int, int]] = []
        self._taken = np.zeros(len(self.sources), int)
        self._lock = Lock()  # batches are drawn in several threads

    @classmethod
    def of(cls, images: Sequence[LabelledImage]) -> "Supervision":
        """Return the supervision by a single source."""
        return cls([Source("labels", images)])

    def batch(self, step: int, batch_size: int, seed: int) -> list[LabelledImage]:
        """Return the images of 0-based `step`, grouped by source.

        Raises:
            ValueError: a batch is too small to have an image of each source.
        """
        if self._in_turn:
            turn, step = self._turn(step)
            counts = [batch_size if k == turn else 0 for k in range(len(self.sources))]
        else:
            counts = self.counts(batch_size)
        several = len(self.sources) > 1
        found: list[LabelledImage] = []
        for source, count in zip(self.sources, counts, strict=True):
            source_seed = derive_seed(seed, "source", source.name) if several else seed
            rows = batch_rows(step, count, len(source.images), source_seed)
            images = [source.images[row] for row in rows]
            found += _share_negatives(images) if source.shared_negatives else images
        return found

    def _turn(self, step: int) -> tuple[int, int]:
        """Return the source of 0-based `step`, and how many steps it had before.

        Each step goes to the source that is furthest behind its fraction of all steps.
        """
        total = sum(source.fraction for source in self.sources)
        fractions = np.array([source.fraction / total for source in self.sources])
        with self._lock:
            while len(self._turns) <= step:
                behind = fractions * (len(self._turns) + 1) - self._taken
                turn = int(np.argmax(behind.round(6)))
                self._turns.append((turn, int(self._taken[turn])))
                self._taken[turn] += 1
            return self._turns[step]

    def counts(self, batch_size: int) -> list[int]:
        """Return how many images of a batch come from each source, by largest remainder.

        Raises:
            ValueError: there would be none from a source.
        """
        exact = np.array([source.fraction for source in self.sources]) * batch_size
        counts = np.floor(exact + 1e-6).astype(int)
        missing = batch_size - counts.sum()
        counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
        if not counts.all():
            name = self.sources[int(np.argmin(counts))].name
            raise ValueError(
                f"supervision.sources: a batch of {batch_size} images has none of {name}; raise its"
                " fraction or training.batch_size, or set supervision.draw to in_turn"
            )
        return counts.tolist()

    def facts(self) -> dict[str, Any]:
        """Return what metrics.json reports of all sources together and, if several, of each."""
        each = {source.name: source.facts() for source in self.sources}
        if len(each) == 1:
            return next(iter(each.values()))
        total = {key: sum(facts[key] for facts in each.values()) for key in ("images", "objects")}
        return {**total, "sources": each}


def _share_negatives(images: Sequence[LabelledImage]) -> list[LabelledImage]:
    """Return images that all have the annotated labels of any of them."""
    annotated = frozenset[int]().union(*(entry.annotated or () for entry in images))
    return [replace(entry, annotated=annotated) for entry in images]


def _with_weights(source: Source) -> Source:
    """Return a source whose images all have weights."""
    images = [
        entry
        if entry.weights is not None
        else replace(entry, weights=np.ones((len(entry.labels), 3), np.float32))
        for entry in source.images
    ]
    return replace(source, images=images)


def source_file(text: str) -> tuple[str, Path]:
    """Return name and annotation file of a further source, from name=file on a command line.

    Raises:
        ArgumentTypeError: the text has another form.
    """
    name, _, path = text.partition("=")
    if not name or not path:
        raise ArgumentTypeError(f"{text}: expected name=file")
    return name, Path(path)


def labels_by_id(categories: Sequence[Category], vocabulary: Sequence[int]) -> dict[int, int]:
    """Return the labels of the categories in a vocabulary: category id → 1-based position in it."""
    return {categories[k].id: place + 1 for place, k in enumerate(vocabulary)}


def read_sources(
    params: SupervisionParams,
    files: Mapping[str, tuple[Path, Mapping[int, int]]],
    known_categories: Iterable[int],
    images: Iterable[AnyImage],
    section: str,
) -> list[Source]:
    """Return the sources that a section of params.yaml asks for.

    Args:
        params: which sources to read.
        files: the COCO annotations of each source that the stage has, and the label of each
            category to learn from it.
        known_categories: every id in categories.json.
        images: the training images; read once per source.
        section: the section of params.yaml, for error messages.

    Raises:
        ValueError: the stage has no such source, or a file cannot be used.
    """
    unknown = [source.name for source in params.sources if source.name not in files]
    if unknown:
        raise ValueError(
            f"params.yaml: {section}.supervision.sources: this stage has {', '.join(files)}, found"
            f" {unknown}; to add a file, give its command --source name=file and list"
            " the file in its deps"
        )
    known, found = list(known_categories), []
    for source in params.sources:
        path, labels = files[source.name]
        annotations = read_annotations(path, labels, known, need_masks="mask" in source.teaches)
        labelled = label_images(images, annotations, labels, path, source)
        shared = source.negatives == "batch"
        found.append(Source(source.name, labelled, source.fraction, annotations.skipped, shared))
    return found
