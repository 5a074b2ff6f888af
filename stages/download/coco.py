"""Source `coco`: photographs in the official folder layout of COCO 2017.

Reads <folder>/annotations/instances_{train,val}2017.json and captions_train2017.json, and pictures
of <folder>/{train,val}2017. The split, chosen so that numbers compare with published ones:

- test: all of val2017, on which the 48/17 protocol scores;
- val: a fixed share of train2017, chosen by a hash of the image id alone, for tuning;
- train: the rest of train2017. pairs: the same pictures, as captioned pairs.

With `train_part: val2017` nothing of train2017 is read, for a small experiment: a share of val2017,
chosen by a hash as well, is test, and the rest takes the place of train2017.

Frame: pixels of the stored picture; its EXIF rotation is ignored, as COCO's annotations ignore it.
"""

from dataclasses import dataclass
from pathlib import Path

from stages.common.categories import Category
from stages.common.coco import group_by_image
from stages.common.masks import to_rle
from stages.common.storage import read_json
from stages.download.coco_classes import coco_category
from stages.download.examples import CAPTIONED, Example, Listed, Skipped, Source, plain
from stages.download.params import CocoParams
from stages.download.photographs import first_images, is_held_out, read_photograph, skip_unread

VAL, TEST = "coco-val", "coco-test"  # what the hashes that hold pictures out are made for


@dataclass(frozen=True)
class CocoTask:
    """One photograph to read, and what the annotation files say about it.

    `annotations` are as the file has them.
    """

    split: str
    image_id: int
    path: Path
    image_hw: tuple[int, int]
    captions: tuple[str, ...]
    annotations: tuple[dict, ...]


def coco_source(params: CocoParams) -> Source:
    """Return the source; reads the annotation files, no picture.

    Raises:
        FileNotFoundError: an annotation file or a folder of pictures is not there.
        ValueError: an annotation file is no COCO file, or has other classes than COCO, or a picture
            in another folder.
    """
    folder = Path(params.folder)
    part = params.train_part
    train = _read_annotations(folder, f"instances_{part}", ("images", "annotations"))
    test = _read_annotations(folder, "instances_val2017", ("images", "annotations"))
    captions: dict[int, list[str]] = {}
    for entry in _read_annotations(folder, f"captions_{part}", ("annotations",))["annotations"]:
        captions.setdefault(entry["image_id"], []).append(plain(entry["caption"]))
    tested, held_out, kept = [], [], []
    for image in train["images"]:
        if part == "val2017" and is_held_out(image["id"], TEST, params.test_fraction):
            tested.append(image)
        elif is_held_out(image["id"], VAL, params.val_fraction):
            held_out.append(image)
        else:
            kept.append(image)
    tested = tested if part == "val2017" else test["images"]
    chosen = {"pairs": kept, "train": kept, "val": held_out, "test": tested}
    objects = {
        part: group_by_image(train["annotations"]),
        "val2017": group_by_image(test["annotations"]),
    }
    tasks = {}
    for split, images in chosen.items():
        pictures = folder / ("val2017" if split == "test" else part)
        _require(pictures, pictures.is_dir())
        every = (
            CocoTask(
                split,
                image["id"],
                pictures / _plain_name(image["file_name"]),
                (image["height"], image["width"]),
                tuple(captions.get(image["id"], ())) if split in CAPTIONED else (),
                # pairs have no ground truth
                tuple(objects[pictures.name].get(image["id"], ())) if split != "pairs" else (),
            )
            for image in images
        )
        tasks[split] = first_images(every, getattr(params.max_images, split))
    return Source(tuple(_categories(folder, train, test)), tasks, make_example, look_up)


def look_up(task: CocoTask) -> Listed | Skipped:
    """Return what the annotation files say of a photograph that is there."""
    category_ids = tuple(entry["category_id"] for entry in task.annotations)
    return _skip_unread(task) or Listed(task.image_id, task.captions, category_ids)


def make_example(task: CocoTask) -> Example | Skipped:
    """Read and check one photograph; its bytes are kept as they are."""
    if skipped := _skip_unread(task):
        return skipped
    picture = read_photograph(task.path, task.image_id, task.path.name)
    if isinstance(picture, Skipped):
        return picture
    if (image_hw := (picture.height, picture.width)) != task.image_hw:
        reason = f"is {_size(image_hw)} pixels, annotated as {_size(task.image_hw)}"
        return Skipped(task.image_id, str(task.path), reason)
    annotations = tuple(_ground_truth(entry, task) for entry in task.annotations)
    return Example(picture, task.captions, annotations)


def _skip_unread(task: CocoTask) -> Skipped | None:
    captions = task.captions if task.split in CAPTIONED else None
    return skip_unread(task.path, task.image_id, captions)


def _ground_truth(annotation: dict, task: CocoTask) -> dict:
    """Return one annotation with its polygons or run lengths as compressed RLE."""
    try:
        return {
            "id": annotation["id"],
            "image_id": task.image_id,
            "category_id": annotation["category_id"],
            "bbox": [float(side) for side in annotation["bbox"]],
            "area": float(annotation["area"]),
            "iscrowd": int(annotation["iscrowd"]),
            "segmentation": to_rle(annotation["segmentation"], task.image_hw),
        }
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"annotation {annotation.get('id')} of {task.path}: {error!r}; the file in "
            "annotations/ must be COCO's instances format with masks"
        ) from error


def _categories(folder: Path, train: dict, test: dict) -> list[Category]:
    """Return the classes of both annotation files, which must have the same."""
    named = [{c["id"]: c["name"] for c in content["categories"]} for content in (train, test)]
    if named[0] != named[1]:
        raise ValueError(
            f"{folder}/annotations: instances_train2017.json and instances_val2017.json list "
            "different categories; take both from one release of COCO"
        )
    return [coco_category(index, name) for index, name in sorted(named[0].items())]


def _read_annotations(folder: Path, name: str, keys: tuple[str, ...]) -> dict:
    path = folder / "annotations" / f"{name}.json"
    _require(path, path.is_file())
    content = read_json(path)
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(f"{path}: not a COCO file: it lacks {missing}")
    return content


def _plain_name(file_name: str) -> str:
    """Return the name of a file, which may be fetched to, if it is one inside the folder."""
    if file_name != Path(file_name).name:
        raise ValueError(f"image file_name {file_name!r}: expected a plain name, as COCO 2017 has")
    return file_name


def _require(path: Path, is_there: bool) -> None:
    if not is_there:
        raise FileNotFoundError(
            f"{path.absolute()}: not found; download.coco.folder of params.yaml must have "
            "train2017/, val2017/ and annotations/ as COCO 2017 ships them"
        )


def _size(image_hw: tuple[int, int]) -> str:
    return f"{image_hw[1]} × {image_hw[0]}"
