"""Source `coco`: photographs in the official folder layout of COCO 2017.

Reads <folder>/annotations/instances_{train,val}2017.json and captions_train2017.json, and pictures
of <folder>/{train,val}2017. The split, chosen so that numbers compare with published ones:

- test: all of val2017, on which the 48/17 protocol scores;
- val: a fixed share of train2017, chosen by a hash of the image id alone, for tuning;
- train: the rest of train2017. pairs: the same pictures, as captioned pairs.

Frame: pixels of the stored picture; its EXIF rotation is ignored, as COCO's annotations ignore it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stages.common.categories import Category
from stages.common.coco import group_by_image
from stages.common.images import Picture, decode_image
from stages.common.masks import to_rle
from stages.common.seeding import derive_seed
from stages.common.storage import read_json
from stages.download.coco_classes import coco_category
from stages.download.examples import CAPTIONED, Example, Skipped, Source
from stages.download.params import CocoParams

JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"


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
        ValueError: an annotation file is no COCO file, or has other classes than COCO.
    """
    folder = Path(params.folder)
    train = _read_annotations(folder, "instances_train2017", ("images", "annotations"))
    test = _read_annotations(folder, "instances_val2017", ("images", "annotations"))
    captions: dict[int, list[str]] = {}
    for entry in _read_annotations(folder, "captions_train2017", ("annotations",))["annotations"]:
        captions.setdefault(entry["image_id"], []).append(" ".join(entry["caption"].split()))
    held_out = [i for i in train["images"] if is_held_out(i["id"], params.val_fraction)]
    kept = [i for i in train["images"] if not is_held_out(i["id"], params.val_fraction)]
    chosen = {"pairs": kept, "train": kept, "val": held_out, "test": test["images"]}
    objects = {
        "train2017": group_by_image(train["annotations"]),
        "val2017": group_by_image(test["annotations"]),
    }
    tasks = {}
    for split, images in chosen.items():
        pictures = folder / ("val2017" if split == "test" else "train2017")
        _require(pictures, pictures.is_dir())
        tasks[split] = [
            CocoTask(
                split,
                image["id"],
                pictures / image["file_name"],
                (image["height"], image["width"]),
                tuple(captions.get(image["id"], ())) if split in CAPTIONED else (),
                # pairs have no ground truth
                tuple(objects[pictures.name].get(image["id"], ())) if split != "pairs" else (),
            )
            for image in first_images(images, getattr(params.max_images, split))
        ]
    return Source(tuple(_categories(folder, train, test)), tasks, make_example)


def is_held_out(image_id: int, val_fraction: float) -> bool:
    """Return whether a picture of train2017 is in val: the same for every seed and image count."""
    return derive_seed(0, "coco-val", image_id) < val_fraction * 2**63


def first_images(images: Iterable[dict], limit: int | None) -> list[dict]:
    """Return at most `limit` images, those of the smallest ids, in order of their id."""
    return sorted(images, key=lambda image: image["id"])[:limit]


def make_example(task: CocoTask) -> Example | Skipped:
    """Read and check one photograph; its bytes are kept as they are."""
    skip = partial(Skipped, task.image_id, str(task.path))
    if task.split in CAPTIONED and not task.captions:
        return skip("has no caption")
    try:
        encoded = task.path.read_bytes()
    except FileNotFoundError:
        return skip("no such file")
    if is_cut_short(encoded):
        return skip(f"JPEG without an end, cut short at {len(encoded)} bytes")
    try:
        image_hw = decode_image(encoded, task.path.name).shape[:2]
    except ValueError:
        return skip(f"cannot be decoded as a picture ({len(encoded)} bytes)")
    if image_hw != task.image_hw:
        return skip(f"is {_size(image_hw)} pixels, annotated as {_size(task.image_hw)}")
    annotations = tuple(_ground_truth(entry, task) for entry in task.annotations)
    picture = Picture(task.image_id, task.path.name, *image_hw, encoded)
    return Example(picture, task.captions, annotations)


def is_cut_short(encoded: bytes) -> bool:
    """Return whether a JPEG ends before its last scan does; many decoders fill in grey.

    Neither marker can be part of a scan's own data, where 0xff is always followed by 0x00 or a
    restart marker.
    """
    return encoded.startswith(JPEG_START) and encoded.rfind(JPEG_END) < encoded.rfind(JPEG_SCAN)


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


def _require(path: Path, is_there: bool) -> None:
    if not is_there:
        raise FileNotFoundError(
            f"{path.absolute()}: not found; download.coco.folder of params.yaml must have "
            "train2017/, val2017/ and annotations/ as COCO 2017 ships them"
        )


def _size(image_hw: tuple[int, int]) -> str:
    return f"{image_hw[1]} × {image_hw[0]}"
