"""COCO annotations and image shards as training samples of a detector.

Ground truth and pseudo-annotations have the same form, so the same code reads both.

Shape legend: n objects of an image, m of which are not crowds, H W pixels.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float32, Int, Int64

from stages.common.formats.outlines import ignore_unoutlined
from stages.common.formats.stored_images import AnyImage
from stages.common.geometry.boxes import SMALLEST_SIDE, clip_boxes, xywh_to_xyxy
from stages.common.geometry.masks import decode_mask
from stages.common.runtime.seeding import numpy_generator
from stages.common.runtime.storage import read_json
from stages.models.detection.detector import IGNORED
from stages.models.detection.params import Aspect, SourceParams

LARGEST_SKIPPED_FRACTION = 0.05
# What tells why a source has no label, by the name of its file; else people labelled it.
REPORTS = {
    "phrases": "data/phrase_labels/metrics.json",
    **dict.fromkeys(("pseudo_masks", "pseudo_annotations"), "data/pseudo_labels/report.json"),
}
SPLITS = "the split in data/download/categories.json"


@dataclass(frozen=True)
class LabelledImage:
    """An image, not decoded yet, and its objects; crowds come last, with label -1 and no mask."""

    image: AnyImage
    boxes_xyxy: Float32[np.ndarray, "n 4"]
    labels: Int64[np.ndarray, " n"]  # 1-based positions in the vocabulary, or -1
    segmentations: list[Any]  # m COCO segmentations; None for an object without
    # Of each object's class, box and mask in the losses; all 1 if None
    weights: Float32[np.ndarray, "n 3"] | None = None
    annotated: frozenset[int] | None = None  # labels that were looked for; all if None
    box_grids: Sequence[int] = ()  # to expand boxes to, in cells per side


@dataclass(frozen=True)
class Annotations:
    """The usable objects of an annotation file by image, and what was left out."""

    objects: dict[int, list[dict]]
    skipped: dict[str, list[int]]  # reason → annotation ids


def read_annotations(
    path: Path,
    labels: Mapping[int, int],
    known_categories: Iterable[int],
    need_masks: bool = True,
) -> Annotations:
    """Read the objects of the categories to learn.

    Args:
        path: a file in COCO's instances format.
        labels: category id → label, of the categories to learn; objects of other known categories
            are left out, as if nobody had labelled them.
        known_categories: every id in categories.json.
        need_masks: leave out objects without a segmentation.

    Raises:
        ValueError: a category is unknown, no object is left, or too many are unusable.
    """
    content = read_json(path)
    entries = ignore_unoutlined(content["annotations"])
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    unknown = sorted({a["category_id"] for a in entries} - set(known_categories))
    if unknown:
        raise ValueError(
            f"{path}: category_id {unknown[:5]} not in data/download/categories.json;"
            " run `dvc repro` to bring both files to the same state"
        )
    wanted = [a for a in entries if a["category_id"] in labels]
    objects: dict[int, list[dict]] = {}
    skipped: dict[str, list[int]] = {"box_under_a_pixel": [], "no_segmentation": []}
    for annotation in wanted:
        box = xywh_to_xyxy(np.array([annotation["bbox"]], np.float32))
        x0, y0, x1, y1 = clip_boxes(box, sizes[annotation["image_id"]])[0]
        if min(x1 - x0, y1 - y0) < SMALLEST_SIDE:
            skipped["box_under_a_pixel"].append(annotation["id"])
        elif need_masks and not annotation.get("segmentation"):
            skipped["no_segmentation"].append(annotation["id"])
        else:
            objects.setdefault(annotation["image_id"], []).append(annotation)
    broken = sum(map(len, skipped.values()))
    if broken:
        print(f"{path}: annotations left out: {skipped}", file=sys.stderr)
    if broken > LARGEST_SKIPPED_FRACTION * len(wanted):
        reasons = {reason: ids[:5] for reason, ids in skipped.items() if ids}
        raise ValueError(
            f"{path}: {broken} of {len(wanted)} annotations are unusable (first ids: {reasons});"
            f" at most {LARGEST_SKIPPED_FRACTION:.0%} may be; correct the file"
        )
    objects = {k: group for k, group in objects.items() if not all(map(_is_crowd, group))}
    if not objects:
        raise ValueError(
            f"{path}: none of its {len(entries)} annotations has one of the {len(labels)}"
            f" categories to learn; check {REPORTS.get(path.stem, SPLITS)}"
        )
    return Annotations(objects, skipped)


def label_images(
    images: Iterable[AnyImage],
    annotations: Annotations,
    labels: Mapping[int, int],
    path: Path,
    source: SourceParams | None = None,
) -> list[LabelledImage]:
    """Join images and their objects, in the order of the images; drop images without an object.

    With `StoredImages`, memory holds the objects and a bounded number of image bytes. With
    `read_images` it would hold all image bytes: 16 GB for 100 thousand photographs. Without a
    `source`, every weight of every object is 1.

    Raises:
        ValueError: an annotation of `path` has no image.
    """
    objects = annotations.objects
    known = frozenset(labels[a["category_id"]] for group in objects.values() for a in group)
    scores = [a["score"] for group in objects.values() for a in group if "score" in a]
    mean_score = float(np.mean(scores)) if any(scores) else 1.0
    labelled = [
        _label(image, objects[image.image_id], labels, source, known, mean_score)
        for image in images
        if image.image_id in objects
    ]
    missing = sorted(objects.keys() - {entry.image.image_id for entry in labelled})
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} annotated image_ids such as {missing[:5]} are in no shard of"
            " data/download/images/train; run `dvc repro` to bring both to the same state"
        )
    return labelled


def _is_crowd(annotation: dict) -> bool:
    return bool(annotation.get("iscrowd", 0))


def _label(
    image: AnyImage,
    group: list[dict],
    labels: Mapping[int, int],
    source: SourceParams | None,
    known: frozenset[int],
    mean_score: float,
) -> LabelledImage:
    group = sorted(group, key=_is_crowd)
    boxes = xywh_to_xyxy(np.array([a["bbox"] for a in group], np.float32))
    negatives = "all" if source is None else source.negatives
    present = frozenset(labels[a["category_id"]] for a in group)
    return LabelledImage(
        image,
        clip_boxes(boxes, (image.height, image.width)),
        np.array([IGNORED if _is_crowd(a) else labels[a["category_id"]] for a in group]),
        [a.get("segmentation") or None for a in group if not _is_crowd(a)],
        None if source is None else object_weights(group, source, mean_score),
        {"all": None, "source": known, "batch": present, "image": present}[negatives],
        () if source is None else source.box_grids,
    )


def expand_boxes(
    boxes_xyxy: Float32[np.ndarray, "n 4"], cells: Int[np.ndarray, " n"], image_hw: tuple[int, int]
) -> Float32[np.ndarray, "n 4"]:
    """Return boxes whose edges are moved outwards to the lines of a grid.

    The grid of each box has `cells` cells per side of the image; with 0 the box stays as it is. The
    ALP poster says only "randomly expand boxes", to cover more of the object. Ours: the grid, which
    expands small boxes more, because a pointer is less exact on them.
    """
    height, width = image_hw
    cell = np.array([width, height]) / np.maximum(cells, 1)[:, None]
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    wide = np.concatenate([np.floor(low / cell) * cell, np.ceil(high / cell) * cell], 1)
    wide = clip_boxes(wide.astype(np.float32), image_hw)
    wide = np.concatenate([np.minimum(wide[:, :2], low), np.maximum(wide[:, 2:], high)], 1)
    return np.where(cells[:, None] > 0, wide, boxes_xyxy)


def object_weights(
    group: Sequence[dict], source: SourceParams, mean_score: float
) -> Float32[np.ndarray, "n 3"] | None:
    """Return the weights of each object's class, box and mask; None if all are 1.

    An object without a segmentation has mask weight 0. With `weigh_by_score`, all weights of an
    object are multiplied by its score, divided by the mean score of the source's objects: scores
    have no common scale, and those of pseudo-boxes are sums over pixels. An object without a score
    counts as an average one. Within a source, the score of the same activation still grows with the
    fourth root of the image's area.
    """
    weights = np.array(
        [[source.teaches.get(aspect, 0.0) for aspect in get_args(Aspect)]] * len(group)
    )
    if source.weigh_by_score:
        weights *= [[annotation.get("score", mean_score) / mean_score] for annotation in group]
    weights[[not annotation.get("segmentation") for annotation in group], -1] = 0
    return None if (weights == 1).all() else weights.astype(np.float32)


def batch_rows(step: int, batch_size: int, count: int, seed: int) -> list[int]:
    """Return which of `count` items form the batch of 0-based `step`.

    Items come in a new random order each epoch. The function is pure, so resuming needs no state.
    """
    epoch, place = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), count)
    orders = {k: numpy_generator(seed, "epoch", k).permutation(count) for k in set(epoch.tolist())}
    return [int(orders[int(k)][at]) for k, at in zip(epoch, place, strict=True)]


def training_sample(
    labelled: LabelledImage, random: np.random.Generator, flip: bool, colour_jitter: float
) -> tuple[Float32[torch.Tensor, "3 H W"], dict[str, torch.Tensor]]:
    """Return a randomly augmented image, in [0, 1] before jitter, and its target.

    The target has "boxes" float32 (n, 4), "labels" int64 (n,), "masks" uint8 (m, H, W), "weights"
    float32 (n, 3) where not all are 1, and "annotated" int64 (k,) where not all classes are.
    `colour_jitter` is the standard deviation of each channel's factor, which is 1 on average, and
    of its offset, whose unit is 0.27 (the deviation of natural images).
    """
    pixels = labelled.image.decode()
    image_hw = pixels.shape[:2]
    boxes = labelled.boxes_xyxy.copy()
    masks = np.zeros((len(labelled.segmentations), *image_hw), np.uint8)
    for k, segmentation in enumerate(labelled.segmentations):
        if segmentation is not None:
            masks[k] = decode_mask(segmentation, image_hw)
    if flip and random.random() < 0.5:
        pixels, masks = pixels[:, ::-1], masks[:, :, ::-1]
        boxes[:, [0, 2]] = image_hw[1] - boxes[:, [2, 0]]
    gain, offset = random.normal(0, colour_jitter, (2, 3, 1, 1)).astype(np.float32)
    if labelled.box_grids:
        cells = random.choice(labelled.box_grids, len(boxes))
        cells[labelled.labels == IGNORED] = 0
        boxes = expand_boxes(boxes, cells, image_hw)
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float() / 255
    target = {
        "boxes": torch.from_numpy(boxes),
        "labels": torch.from_numpy(labelled.labels),
        "masks": torch.from_numpy(np.ascontiguousarray(masks)),
    }
    if labelled.weights is not None:
        target["weights"] = torch.from_numpy(labelled.weights)
    if labelled.annotated is not None:
        target["annotated"] = torch.tensor(sorted(labelled.annotated))
    return image * (1 + torch.from_numpy(gain)) + 0.27 * torch.from_numpy(offset), target
