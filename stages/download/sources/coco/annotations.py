"""Reads COCO's annotation files, and those that other tools write in this format.

Missing values are filled in if they are certain: `iscrowd` is 0, `area` and `bbox` are those of the
mask, a flat list of numbers is one polygon, an id in quotes is a number. An object without a mask
gets an empty one and is counted. Anything else raises an error with file and id.

Frame: pixels of the image at the size that the file gives; boxes are x, y, width, height.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from stages.common.geometry.boxes import SMALLEST_SIDE
from stages.common.geometry.masks import check_rle, to_rle
from stages.common.runtime.storage import read_json
from stages.download.examples import (
    NEITHER,
    NO_AREA,
    NO_IMAGE,
    NO_MASK,
    WRONG_BOX,
    AnnotationFile,
    plain,
)

LARGEST_ID = 2**53  # every id is exact as a float
LARGEST_SIDE = 65_535  # pixels; JPEG's limit. The pixels of such an image can be counted in 32 bits
LEAST_IOU = 0.5  # of a box and its mask's own; COCO's boxes have 0.99, corners for sizes about 0.3
FARTHEST = 10  # sides of the image by which a polygon or box may leave it


@dataclass(frozen=True)
class Instances:
    """An instances file.

    Attributes:
        categories: id → name; ids from 1, because 0 stands for no class.
        images: id, file_name, height and width of each.
        annotations: image id → its annotations: id, image_id, category_id, bbox, iscrowd, area, and
            segmentation in any of COCO's forms; area and segmentation may be None.
        file: the number of annotations, and which of them are unusable.
    """

    categories: dict[int, str]
    images: list[dict]
    annotations: dict[int, list[dict]]
    file: AnnotationFile


def read_instances(path: Path) -> Instances:
    """Return the content of an instances file.

    Raises:
        ValueError: the file has another format, or an entry cannot be understood; the message has
            its id.
    """
    content = _read_lists(path, "images", "annotations", "categories")
    categories = dict(_categories(content["categories"], path))
    images = [_image(entry, path) for entry in content["images"]]
    _require_once(path, "image id", (image["id"] for image in images))
    _require_once(path, "image file_name", (image["file_name"] for image in images))
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    ids = [_id(entry, "id", f"{path}: annotation") for entry in content["annotations"]]
    _require_once(path, "annotation id", ids)
    first = int(0 in ids)  # pycocotools takes id 0 for no match
    shift = int(0 in categories)  # and phrases take it for no class
    annotations: dict[int, list[dict]] = {}
    unusable: dict[str, list[int]] = {}
    for number, entry in zip(ids, content["annotations"], strict=True):
        where = f"{path}: annotation {number}"
        image_id = _id(entry, "image_id", where)
        if image_id not in sizes:
            unusable.setdefault(NO_IMAGE, []).append(number)
            continue
        annotation = _annotation(entry, where, sizes[image_id], categories)
        if fault := find_fault(annotation, sizes[image_id]):
            unusable.setdefault(fault, []).append(number)
        if fault != NEITHER:
            annotation |= {"category_id": annotation["category_id"] + shift}
            own = {"id": number + first, "image_id": image_id}
            annotations.setdefault(image_id, []).append(own | annotation)
    categories = {number + shift: name for number, name in categories.items()}
    return Instances(categories, images, annotations, AnnotationFile(len(ids), unusable))


def read_captions(path: Path) -> dict[int, list[str]]:
    """Return image id → captions of a captions file, on one line each; blank ones do not count.

    Raises:
        ValueError: the file has another format, or an entry has no caption.
    """
    captions: dict[int, list[str]] = {}
    for number, entry in enumerate(_read_lists(path, "annotations")["annotations"], 1):
        where = f"{path}: caption {number}"
        image_id = _id(entry, "image_id", where)
        if not isinstance(entry.get("caption"), str):
            raise ValueError(f"{where}: caption is {entry.get('caption')!r}, expected a string")
        if text := plain(entry["caption"]):
            captions.setdefault(image_id, []).append(text)
    return captions


def find_fault(annotation: Mapping[str, Any], image_hw: tuple[int, int]) -> str | None:
    """Return why an annotation cannot teach a mask or a box, or None if it can."""
    x, y, width, height = annotation["bbox"]
    inside = (
        min(x + width, image_hw[1]) - max(x, 0),
        min(y + height, image_hw[0]) - max(y, 0),
    )
    if annotation["segmentation"] is None and not any(annotation["bbox"]):
        return NEITHER
    if min(inside) < SMALLEST_SIDE:
        return NO_AREA
    if annotation["segmentation"] is None:
        beyond = max(-x, -y, x + width - image_hw[1], y + height - image_hw[0])
        return WRONG_BOX if beyond > 1 else NO_MASK
    boxes = (annotation["bbox"], _mask_box(annotation["segmentation"], image_hw))
    # A pixel more on each side: tools round the boxes of small objects.
    box, own = ([[x - 1, y - 1, width + 2, height + 2]] for x, y, width, height in boxes)
    return WRONG_BOX if coco_mask.iou(box, own, [0]) < LEAST_IOU else None


def _mask_box(segmentation: dict | list, image_hw: tuple[int, int]) -> list[float]:
    """Return the box of a mask; polygons are not drawn, which takes longer than all else."""
    if isinstance(segmentation, dict):
        return coco_mask.toBbox(to_rle(segmentation, image_hw)).tolist()
    sides = [[value for polygon in segmentation for value in polygon[axis::2]] for axis in (0, 1)]
    corner = [min(side) for side in sides]
    return corner + [max(side) - low for side, low in zip(sides, corner, strict=True)]


def complete(annotation: Mapping[str, Any], image_hw: tuple[int, int]) -> dict:
    """Return an annotation of `Instances` with its area, and its mask as compressed RLE."""
    rle = to_rle(annotation["segmentation"] or [], image_hw)
    area = annotation["area"]
    if area is None:
        area = float(coco_mask.area(rle)) or annotation["bbox"][2] * annotation["bbox"][3]
    return {**annotation, "area": area, "segmentation": rle}


def _read_lists(path: Path, *keys: str) -> dict:
    content = read_json(path)
    missing = [
        key
        for key in keys
        if not isinstance(content, dict) or not isinstance(content.get(key), list)
    ]
    if missing:
        raise ValueError(f"{path}: not a COCO file: it lacks {missing}")
    return content


def _categories(entries: list, path: Path) -> Iterator[tuple[int, str]]:
    ids = [_id(entry, "id", f"{path}: category") for entry in entries]
    _require_once(path, "category id", ids)
    _require_once(path, "category name", [entry.get("name") for entry in entries])
    for number, entry in zip(ids, entries, strict=True):
        if not isinstance(entry.get("name"), str):
            raise ValueError(f"{path}: category {number}: name is {entry.get('name')!r}")
        yield number, entry["name"]


def _image(entry: Any, path: Path) -> dict:
    number = _id(entry, "id", f"{path}: image")
    where, name = f"{path}: image {number}", entry.get("file_name")
    # `fetch` may write to this name, so it must stay inside the folder.
    if not isinstance(name, str) or name != Path(name).name or not name:
        raise ValueError(
            f"{where}: file_name {name!r}: expected a plain name, as COCO 2017 has, such as"
            f" {Path(str(name)).name!r}; move the images into the folder itself"
        )
    size = {side: _id(entry, side, where) for side in ("height", "width")}
    if not all(0 < side <= LARGEST_SIDE for side in size.values()):
        raise ValueError(
            f"{where}: is {size['width']} × {size['height']} pixels, expected 1 to {LARGEST_SIDE}"
        )
    return {"id": number, "file_name": name, **size}


def _annotation(
    entry: dict, where: str, image_hw: tuple[int, int], categories: Mapping[int, str]
) -> dict:
    category_id = _id(entry, "category_id", where)
    if category_id not in categories:
        raise ValueError(
            f"{where}: category_id {category_id} is not among the file's categories; add it there,"
            " or remove the annotation"
        )
    crowd = entry.get("iscrowd")
    if crowd not in (None, 0, 1):
        raise ValueError(f"{where}: iscrowd is {crowd!r}, expected 0 or 1")
    segmentation = _segmentation(entry.get("segmentation"), where, image_hw)
    box, area = entry.get("bbox"), entry.get("area")
    if box:
        box = _numbers(box, f"{where}: bbox", 4)
        x, y, width, height = box
        _require_near([x, y, x + width, y + height], f"{where}: bbox", image_hw)
    elif segmentation:
        box = coco_mask.toBbox(to_rle(segmentation, image_hw)).tolist()
    if area is not None:
        (area,) = _numbers([area], f"{where}: area", 1)
    return {
        "category_id": category_id,
        "bbox": box or [0.0] * 4,
        "area": area,
        "iscrowd": int(crowd or 0),
        "segmentation": segmentation,
    }


def _segmentation(given: Any, where: str, image_hw: tuple[int, int]) -> dict | list | None:
    """Return polygons, or an RLE of the image's size; None if there is no mask."""
    key = f"{where}: segmentation"
    if isinstance(given, dict):
        if "counts" not in given or "size" not in given:
            raise ValueError(f"{key}: an RLE has size and counts, found {sorted(given)}")
        try:
            check_rle(given, image_hw)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
        return given if coco_mask.area(to_rle(given, image_hw)) else None
    if not given:
        return None
    if not isinstance(given, list):
        raise ValueError(f"{key}: expected polygons or an RLE, found {given!r:.80}")
    polygons = given if isinstance(given[0], list) else [given]
    for polygon in polygons:
        if len(_numbers(polygon, key)) % 2:
            raise ValueError(f"{key}: a polygon of {len(polygon)} numbers, expected x and y each")
        _require_near(polygon, key, image_hw)
    # Two points have no area, and pycocotools would take four numbers for a box.
    return [polygon for polygon in polygons if len(polygon) >= 6] or None


def _numbers(values: Any, key: str, count: int | None = None) -> list[float]:
    try:
        if isinstance(values, list) and count in (None, len(values)):
            total = sum(map(abs, values))  # NaN and infinity stay what they are
            if math.isfinite(total):
                return [float(value) for value in values]
    except (TypeError, OverflowError):  # not a number, or one that no float can be
        pass
    wanted = {None: "finite numbers", 1: "a finite number"}.get(count, f"{count} finite numbers")
    raise ValueError(f"{key}: expected {wanted}, found {values!s:.80}")


def _require_near(points: Sequence[float], key: str, image_hw: tuple[int, int]) -> None:
    """Refuse points x, y, x, y, … far outside the image: pycocotools crashes on those of 1e7."""
    for values, side in zip((points[1::2], points[::2]), image_hw, strict=True):
        for value in (min(values, default=0), max(values, default=0)):
            if not -FARTHEST * side <= value <= (1 + FARTHEST) * side:
                raise ValueError(
                    f"{key}: {value:g} is far outside the image of {image_hw[1]} × {image_hw[0]}"
                    " pixels; give pixels of the image, or remove the annotation"
                )


def _id(entry: Any, key: str, where: str) -> int:
    """Return a whole number, which may be written as 7, 7.0 or "7"."""
    found = entry.get(key) if isinstance(entry, dict) else None
    value: float = math.nan
    if isinstance(found, str) and found.isdecimal():
        value = int(found)
    elif isinstance(found, int | float) and not isinstance(found, bool):
        value = found
    if value % 1 == 0 and 0 <= value < LARGEST_ID:
        return int(value)
    raise ValueError(f"{where}: {key} is {found!r}, expected a whole number of at least 0")


def _require_once(path: Path, what: str, values: Iterable[Any]) -> None:
    seen: set = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{path}: {what} {value!r} is given twice; each must be unique")
        seen.add(value)
