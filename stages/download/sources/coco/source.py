"""Source `coco`: images in the official folder layout of COCO 2017.

Reads <folder>/annotations/instances_{train,val}2017.json and captions_train2017.json, the images in
<folder>/{train,val}2017 and, if `narratives`, the Localized Narratives of train2017, which are in
<folder>/annotations with their official names. The splits, for results comparable with published
ones:

- test: all of val2017, as in the 48/17 protocol;
- val: a fixed fraction of train2017 for tuning, chosen by a hash of the image id alone;
- train: the rest of train2017. pairs: the same images, as captioned pairs.

With `train_part: val2017`, for a small experiment, nothing of train2017 is read: test is a fraction
of val2017, chosen by a hash too, and the rest replaces train2017.

Frame: pixels of the stored image; its EXIF rotation is ignored, as in COCO's annotations. But if
the annotations have the size of the upright image, the image is rotated and encoded again.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.common.formats.categories import Category
from stages.download.examples import (
    CAPTIONED,
    Example,
    Listed,
    NarrativeFiles,
    Skipped,
    Source,
)
from stages.download.params import CocoParams
from stages.download.photographs import (
    first_images,
    is_held_out,
    read_photograph,
    skip_unread,
    upright,
)
from stages.download.sources.coco.annotations import (
    Instances,
    complete,
    find_fault,
    read_captions,
    read_instances,
)
from stages.download.sources.coco.classes import coco_category

DECIMAL = re.compile("[0-9]{1,18}")
VAL, TEST = "coco-val", "coco-test"  # purposes of `is_held_out`
NARRATIVES = {
    "train2017": [
        f"coco_train_localized_narratives-{number:05d}-of-00004.jsonl" for number in range(4)
    ],
    "val2017": ["coco_val_localized_narratives.jsonl"],
}


@dataclass(frozen=True)
class CocoTask:
    """One image to read, and its entries in the annotation files.

    `annotations` have the form of `Instances.annotations`.
    """

    split: str
    image_id: int
    path: Path
    image_hw: tuple[int, int]
    captions: tuple[str, ...]
    annotations: tuple[dict, ...]


def coco_source(params: CocoParams) -> Source:
    """Return the source; reads the annotation files, no image.

    Raises:
        FileNotFoundError: an annotation file or a folder of images is missing.
        ValueError: an annotation file has another format, classes that COCO lacks, or an image in
            another folder; the two instances files list different classes; or the captions are
            of other images.
    """
    folder = Path(params.folder).expanduser()
    part = params.train_part
    paths = {
        name: _require(folder / "annotations" / f"{name}.json", Path.is_file)
        for name in (f"instances_{part}", "instances_val2017", f"captions_{part}")
    }
    train = read_instances(paths[f"instances_{part}"])
    test = train if part == "val2017" else read_instances(paths["instances_val2017"])
    captions = read_captions(paths[f"captions_{part}"])
    if train.images and not any(image["id"] in captions for image in train.images):
        raise ValueError(
            f"{paths[f'captions_{part}']}: no caption is of an image of instances_{part}.json; take"
            " both from one release"
        )
    tested, held_out, kept = [], [], []
    for image in train.images:
        if part == "val2017" and is_held_out(image["id"], TEST, params.test_fraction):
            tested.append(image)
        elif is_held_out(image["id"], VAL, params.val_fraction):
            held_out.append(image)
        else:
            kept.append(image)
    tested = tested if part == "val2017" else test.images
    chosen = {"pairs": kept, "train": kept, "val": held_out, "test": tested}
    objects: dict[str, dict[int, list[dict]]] = {
        part: train.annotations,
        "val2017": test.annotations,
    }
    tasks = {}
    for split, images in chosen.items():
        image_folder = _require(folder / ("val2017" if split == "test" else part), Path.is_dir)
        every = (
            CocoTask(
                split,
                image["id"],
                image_folder / image["file_name"],
                (image["height"], image["width"]),
                tuple(captions.get(image["id"], ())) if split in CAPTIONED else (),
                # pairs have no ground truth
                tuple(objects[image_folder.name].get(image["id"], ())) if split != "pairs" else (),
            )
            for image in images
        )
        tasks[split] = first_images(every, getattr(params.max_images, split))
    categories = tuple(_categories(folder, train, test))
    files = {f"instances_{part}.json": train.file, "instances_val2017.json": test.file}
    problem = _nothing_to_learn(paths[f"instances_{part}"], tasks["train"], categories)
    problems = (problem,) if problem else ()
    traces = None
    if params.narratives:
        narratives = [folder / "annotations" / name for name in NARRATIVES[part]]
        example = str(tasks["train"][0].image_id) if tasks["train"] else "9"
        traces = NarrativeFiles(narratives, _image_id, example, "download.coco.narratives")
    return Source(
        categories,
        tasks,
        make_example,
        look_up,
        files=files,
        problems=problems,
        narratives=traces,
    )


def _image_id(name: str) -> int:
    """Return the image id of a narrative, which has it as text; -1 of another data set's."""
    return int(name) if DECIMAL.fullmatch(name) else -1


def _nothing_to_learn(
    path: Path, tasks: Sequence[CocoTask], categories: Iterable[Category]
) -> str | None:
    """Return a message if `finetune` would find, hours later, no object to learn from."""
    base = {category.id for category in categories if category.split == "base"}
    objects = [(entry, task.image_hw) for task in tasks for entry in task.annotations]
    wanted = [own for own in objects if own[0]["category_id"] in base and not own[0]["iscrowd"]]
    if any(find_fault(entry, image_hw) is None for entry, image_hw in wanted):
        return None
    return (
        f"{path}: none of the {len(objects)} annotations of training images is an object of a base"
        " class with box and mask that is not a crowd: there is nothing to learn from"
    )


def look_up(task: CocoTask) -> Listed | Skipped:
    """Return what the annotation files say about an image, or why it must be skipped."""
    category_ids = tuple(entry["category_id"] for entry in task.annotations)
    return _skip_unread(task) or Listed(task.path.name, task.captions, category_ids)


def make_example(task: CocoTask) -> Example | Skipped:
    """Read and check one image; its bytes are kept, unless it must be rotated upright."""
    if skipped := _skip_unread(task):
        return skipped
    image = read_photograph(task.path, task.image_id, task.path.name)
    if isinstance(image, Skipped):
        return image
    if (image.height, image.width) != task.image_hw:
        image = upright(image)  # as annotation tools show it
    if (image_hw := (image.height, image.width)) != task.image_hw:
        reason = f"is {_size(image_hw)} pixels, annotated as {_size(task.image_hw)}"
        return Skipped(task.image_id, str(task.path), reason)
    annotations = tuple(complete(entry, task.image_hw) for entry in task.annotations)
    return Example(image, task.captions, annotations)


def _skip_unread(task: CocoTask) -> Skipped | None:
    captions = task.captions if task.split in CAPTIONED else None
    return skip_unread(task.path, task.image_id, captions)


def _categories(folder: Path, train: Instances, test: Instances) -> list[Category]:
    """Return the classes, which both instances files must share."""
    if train.categories != test.categories:
        raise ValueError(
            f"{folder}/annotations: instances_train2017.json and instances_val2017.json list "
            "different categories; take both from one release of COCO"
        )
    try:
        return [coco_category(index, name) for index, name in sorted(train.categories.items())]
    except ValueError as error:
        raise ValueError(f"{folder}/annotations: instances files: {error}") from None


def _require(path: Path, is_there: Callable[[Path], bool]) -> Path:
    if not is_there(path):
        raise FileNotFoundError(
            f"{path.absolute()}: not found; download.coco.folder of params.yaml must have "
            "train2017/, val2017/ and annotations/ as COCO 2017 ships them"
        )
    return path


def _size(image_hw: tuple[int, int]) -> str:
    return f"{image_hw[1]} × {image_hw[0]}"
