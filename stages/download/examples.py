"""The interface of data sources: classes, and a list of tasks per split that make examples.

Splits: `pairs` (captioned images for the vision-language model), `train` (captioned images that get
pseudo-labels), `val` and `test`. Ground truth has COCO's instances format.
"""

import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from stages.common.formats.categories import Category
from stages.common.formats.images import EncodedImage
from stages.common.formats.narratives import Narrative

SPLITS = ("val", "test", "pairs", "train")  # held-out splits come first, see `LeakCheck`
HELD_OUT = frozenset({"val", "test"})
CAPTIONED = frozenset({"pairs", "train"})
# Reasons why an image is left out before it is read, and why an annotation is unusable.
NO_CAPTION, NO_FILE = "has no caption", "no such file"
NO_MASK, NO_AREA = "without a mask", "with a box under a pixel"
NEITHER, NO_IMAGE = "without box and mask", "of an image that is not listed"
WRONG_BOX = "with a box that is not around their mask, or not in the image"


class Task(Protocol):
    """What is needed to make one example. Small: all tasks of a split are in memory."""

    @property
    def image_id(self) -> int:
        """The image's id; the tasks of a split are ordered by it."""


TaskType = TypeVar("TaskType", bound=Task)


@dataclass(frozen=True)
class Listed:
    """What the source's tables say about an image; `category_ids` has one entry per annotation."""

    file_name: str
    captions: tuple[str, ...]
    category_ids: tuple[int, ...]


@dataclass(frozen=True)
class Example:
    """One image with everything that is known about it.

    Attributes:
        image: encoded.
        captions: at least one in captioned splits.
        annotations: COCO annotations: image_id, category_id, bbox [x, y, width, height] in pixels,
            area in square pixels, iscrowd, segmentation as RLE. If they have no `id`, it is added
            on writing. An object that nobody has outlined has an empty mask.
        verified: ids of the classes known to be present or absent; None for all classes.
        narrative: if the source makes it together with the image.
    """

    image: EncodedImage
    captions: tuple[str, ...]
    annotations: tuple[dict, ...]
    verified: Collection[int] | None = None
    narrative: Narrative | None = None

    @property
    def listed(self) -> Listed:
        """What the report counts."""
        category_ids = tuple(annotation["category_id"] for annotation in self.annotations)
        return Listed(self.image.file_name, self.captions, category_ids)


@dataclass(frozen=True)
class Skipped:
    """An image that is left out, and why."""

    image_id: int
    file_name: str
    reason: str


def plain(text: str) -> str:
    """Return a caption or name on one line, in Unicode NFC: equal words are equal strings."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


@dataclass(frozen=True)
class Leaked:
    """An image that is left out of training because it equals the held-out image `same_as`."""

    image_id: int
    file_name: str
    same_as: str


@dataclass(frozen=True)
class NarrativeFiles:
    """Files of Localized Narratives.

    Attributes:
        paths: the files.
        image_id: a function from the narratives' image ids to ours.
        example: the narratives' id of a training image, for messages.
        key: of params.yaml, which says that these files are read.
    """

    paths: Sequence[Path]
    image_id: Callable[[str], int]
    example: str
    key: str


@dataclass(frozen=True)
class AnnotationFile:
    """Counts of an annotation file.

    Attributes:
        number: of all annotations.
        unusable: reason → ids of the unusable annotations.
    """

    number: int
    unusable: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Source(Generic[TaskType]):
    """A data set.

    Attributes:
        categories: all base, novel and excluded classes.
        tasks: split → tasks, ordered by image_id.
        make: makes the example of a task, in any process and order.
        look_up: returns what is known about a task without reading its image, and whether it will
            be skipped; None if only `make` can tell.
        ignored: folder → names of the files in it whose format is not supported.
        files: name → counts of an annotation file, if annotations can be unusable.
        problems: reasons why the data set cannot be used at all.
        annotated: whether anybody has annotated the images' objects.
        ancestors: category id → ids of all classes that include it, if there is a hierarchy.
        narratives: files with Localized Narratives of training images; None if there are none or if
            each example has its own.
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
    """Return split → name of an image file, such as "test" or "train/0" → its tasks, in order.

    Image i of train belongs to shard i // `shard_images` % n, so a new image changes one shard.

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
