"""What every source of data gives: classes, and per split a list of tasks that make examples.

Splits: `pairs` (pictures with captions, for the vision-language model), `train` (pictures with
captions, later with pseudo-labels), `val` and `test`. Ground truth is COCO's instances format.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from stages.common.categories import Category
from stages.common.images import Picture

SPLITS = ("pairs", "train", "val", "test")
CAPTIONED = frozenset({"pairs", "train"})


class Task(Protocol):
    """What has to be known to make one example; small, as every one of a split is in memory."""

    image_id: int


@dataclass(frozen=True)
class Example:
    """One picture with what is known about it.

    Attributes:
        picture: encoded.
        captions: of the picture, at least one in captioned splits.
        annotations: COCO annotations: image_id, category_id, bbox [x, y, width, height] in pixels,
            area in square pixels, iscrowd, segmentation as RLE; `id` is added on writing.
    """

    picture: Picture
    captions: tuple[str, ...]
    annotations: tuple[dict, ...]


@dataclass(frozen=True)
class Skipped:
    """One picture that is left out, and why."""

    image_id: int
    file_name: str
    reason: str


@dataclass(frozen=True)
class Source:
    """A data set.

    Attributes:
        categories: all classes, of every part of the class split.
        tasks: split → tasks in order of their image_id.
        make: turns a task into an example, alike in whichever process and order.
    """

    categories: tuple[Category, ...]
    tasks: dict[str, list[Task]]
    make: Callable[[Task], Example | Skipped]


def group_by_file(
    tasks: dict[str, list[Task]], shards: list[int], shard_images: int
) -> dict[str, dict[str, list[Task]]]:
    """Return split → name of an image file, "test" or "train/0" say → its tasks, in their order.

    `shard_images` consecutive ids, counted from 0, fall in one shard of train, so that a new
    picture changes one shard.

    Raises:
        ValueError: `shards` are not 0, 1, …, n - 1.
    """
    if shards != list(range(len(shards))):
        raise ValueError(f"params.yaml: shards: expected [0, 1, …, n - 1] in order, found {shards}")
    files = {split: {split: tasks[split]} for split in SPLITS}
    files["train"] = {f"train/{shard}": [] for shard in shards}
    for task in tasks["train"]:
        files["train"][f"train/{task.image_id // shard_images % len(shards)}"].append(task)
    return files


def dataset(
    images: list[dict], annotations: list[dict], categories: Iterable[Category]
) -> dict[str, list[dict]]:
    """Return COCO's instances file in order of image ids; new annotations get ids from 1."""
    by_image = sorted(annotations, key=lambda annotation: annotation["image_id"])
    return {
        "images": sorted(images, key=lambda image: image["id"]),
        "annotations": [{"id": number, **a} for number, a in enumerate(by_image, 1)],
        "categories": [{"id": c.id, "name": c.name, "split": c.split} for c in categories],
    }
