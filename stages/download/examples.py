"""What every source of data gives: classes, and per split a list of tasks that make examples.

Splits: `pairs` (images with captions, for the vision-language model), `train` (images with
captions, later with pseudo-labels), `val` and `test`. Ground truth is COCO's instances format.
"""

import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from stages.common.formats.categories import Category
from stages.common.formats.images import EncodedImage
from stages.common.formats.narratives import Narrative

SPLITS = ("val", "test", "pairs", "train")  # those held out first: what they have, no other may
HELD_OUT = frozenset({"val", "test"})
CAPTIONED = frozenset({"pairs", "train"})
# Why an annotation is unusable.
NO_MASK, NO_AREA = "without a mask", "with a box under a pixel"
NEITHER, NO_IMAGE = "without box and mask", "of an image that is not listed"


class Task(Protocol):
    """What has to be known to make one example; small, as every one of a split is in memory."""

    @property
    def image_id(self) -> int:
        """Of the image; tasks of a split are in its order."""


TaskType = TypeVar("TaskType", bound=Task)


@dataclass(frozen=True)
class Listed:
    """What tables say of one image; `category_ids` has one entry per annotation."""

    image_id: int
    captions: tuple[str, ...]
    category_ids: tuple[int, ...]


@dataclass(frozen=True)
class Example:
    """One image with what is known about it.

    Attributes:
        image: encoded.
        captions: of the image, at least one in captioned splits.
        annotations: COCO annotations: image_id, category_id, bbox [x, y, width, height] in pixels,
            area in square pixels, iscrowd, segmentation as RLE; `id` is added on writing. The mask
            of an object that nobody has outlined is empty.
        verified: ids of the classes of which it is known whether the image has an object, where
            that is not so for all classes.
        narrative: of the image, where it is made together with it.
    """

    image: EncodedImage
    captions: tuple[str, ...]
    annotations: tuple[dict, ...]
    verified: Collection[int] | None = None
    narrative: Narrative | None = None

    @property
    def listed(self) -> Listed:
        """Return what the report counts."""
        category_ids = tuple(annotation["category_id"] for annotation in self.annotations)
        return Listed(self.image.image_id, self.captions, category_ids)


@dataclass(frozen=True)
class Skipped:
    """One image that is left out, and why."""

    image_id: int
    file_name: str
    reason: str


def plain(text: str) -> str:
    """Return a caption or name on one line, its accents composed: one word is one text."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


@dataclass(frozen=True)
class Leaked:
    """One image that is left out of training, as it is the held-out image `same_as`."""

    image_id: int
    file_name: str
    same_as: str


@dataclass(frozen=True)
class NarrativeFiles:
    """Files of Localized Narratives, and the image id of what they call an image."""

    paths: Sequence[Path]
    image_id: Callable[[str], int]


@dataclass(frozen=True)
class AnnotationFile:
    """What an annotation file has.

    Attributes:
        number: of annotations.
        unusable: what is wrong with annotations → their ids.
    """

    number: int
    unusable: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Source(Generic[TaskType]):
    """A data set.

    Attributes:
        categories: all classes, of every part of the class split.
        tasks: split → tasks in order of their image_id.
        make: turns a task into an example; the process and the order do not matter.
        look_up: says without reading the image what is known of a task, and whether it will be
            skipped; None where only making an example tells.
        ignored: folder → names of files in it that are in no format we read, if there are any.
        files: name → annotation file, where annotations can be unusable.
        problems: why no experiment can be made of it, if so.
        annotated: whether anybody has annotated the images' objects.
        ancestors: category id → ids of all classes that include it, where there is a hierarchy.
        narratives: where Localized Narratives of training images are; None where there are none,
            or each comes with its example.
    """

    categories: tuple[Category, ...]
    tasks: Mapping[str, Sequence[TaskType]]
    make: Callable[[TaskType], Example | Skipped]
    look_up: Callable[[TaskType], Listed | Skipped] | None = None
    ignored: Mapping[str, Sequence[str]] = field(default_factory=dict)
    files: Mapping[str, AnnotationFile] = field(default_factory=dict)
    problems: Sequence[str] = ()
    annotated: bool = True
    ancestors: Mapping[int, Collection[int]] = field(default_factory=dict)
    narratives: NarrativeFiles | None = None


def group_by_file(
    tasks: Mapping[str, Sequence[TaskType]], shards: list[int], shard_images: int
) -> dict[str, dict[str, Sequence[TaskType]]]:
    """Return split → name of an image file, "test" or "train/0" say → its tasks, in their order.

    `shard_images` consecutive ids, counted from 0, fall in one shard of train, so that a new
    image changes one shard.

    Raises:
        ValueError: `shards` are not 0, 1, …, n - 1.
    """
    if shards != list(range(len(shards))):
        raise ValueError(f"params.yaml: shards: expected [0, 1, …, n - 1] in order, found {shards}")
    train: dict[str, list[TaskType]] = {f"train/{shard}": [] for shard in shards}
    for task in tasks["train"]:
        train[f"train/{task.image_id // shard_images % len(shards)}"].append(task)
    files: dict[str, dict[str, Sequence[TaskType]]] = {
        split: {split: tasks[split]} for split in SPLITS
    }
    return {**files, "train": {**train}}
