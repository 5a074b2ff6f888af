"""Compares the proposal recall of several methods on held-out images.

Source: Mask-free OVIS, figure 2. Shape legend: R boxes and S objects of an image, N objects of all
images. Frame: pixels of the image; boxes x0, y0, x1, y1.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64

from stages.common.formats.images import EncodedImage
from stages.common.geometry.recall import first_hits
from stages.common.runtime.seeding import numpy_generator
from stages.models.detection.detector import Detector, to_unit_range
from stages.models.detection.params import ProposalLimits
from stages.models.proposals.base import Wspn
from stages.models.proposals.params import RankingSettings
from stages.models.proposals.ranking import order_in_layers, rank_proposals

Objects = tuple[Float32[np.ndarray, "S 4"], Int64[np.ndarray, " S"]]


def ordered_boxes(
    image: EncodedImage,
    searched: Float32[np.ndarray, "R 4"],
    detector: Detector,
    wspn: Wspn,
    rankings: Mapping[str, RankingSettings],
    limits: ProposalLimits,
    seed: int,
) -> dict[str, Float32[np.ndarray, "_ 4"]]:
    """Return method → boxes of an image, best first.

    For each ranking there is also `rpn_like_<ranking>`: the detector's proposals, suppressed with
    its IoU thresholds. With `score: classes` only boxes of the same class suppress each other; the
    detector's proposals have no classes, so all of them do.

    Args:
        image: encoded.
        searched: selective search's boxes.
        detector: supports `proposals`.
        wspn: the proposal network.
        rankings: name → a way to rank the proposal network's boxes.
        limits: of the detector's proposals.
        seed: of the random order.
    """
    pixels = image.decode()
    random = numpy_generator(seed, "proposals in random order", image.image_id)
    proposed = detector.propose(to_unit_range(pixels).to(detector.device), limits).cpu()
    descending = torch.linspace(1, 0, len(proposed))
    boxes = {
        "selective_search": searched,
        "random_order": random.permutation(searched),
        "rpn": proposed.numpy(),
    }
    for name, ranking in rankings.items():
        boxes[name] = rank_proposals(wspn, pixels, searched, ranking)[0]
        kept, _ = order_in_layers(proposed, descending, ranking.nms_iou)
        boxes[f"rpn_like_{name}"] = proposed[kept].numpy()
    return boxes


@dataclass(frozen=True)
class Hits:
    """How many of the first boxes it takes to find each object."""

    category_ids: Int64[np.ndarray, " N"]
    by_method: dict[str, Int64[np.ndarray, " N"]]  # `recall.NEVER` if no box finds it


def find_objects(
    found: Iterable[Mapping[str, Float32[np.ndarray, "_ 4"]]], objects: Iterable[Objects]
) -> Hits:
    """Find the objects of all images among the boxes of each method.

    Args:
        found: per image, method → ordered boxes.
        objects: per image, (boxes, category ids).
    """
    hits: dict[str, list[np.ndarray]] = {}
    categories = []
    for boxes, (objects_xyxy, category_ids) in zip(found, objects, strict=True):
        categories.append(category_ids)
        for method, ordered in boxes.items():
            hits.setdefault(method, []).append(first_hits(ordered, objects_xyxy))
    return Hits(
        np.concatenate([np.zeros(0, np.int64), *categories]),
        {name: np.concatenate(parts) for name, parts in hits.items()},
    )


def recall_table(
    hits: Hits, groups: Mapping[str, set[int]], recall_at: Sequence[int]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return method → group → {"recall@K": fraction of the group's objects found at IoU 0.5}.

    Args:
        hits: of all objects.
        groups: name → category ids.
        recall_at: the numbers of boxes K.

    Raises:
        ValueError: a group has no objects.
    """
    members = {name: np.isin(hits.category_ids, sorted(ids)) for name, ids in groups.items()}
    empty = sorted(name for name, rows in members.items() if not rows.any())
    if empty:
        raise ValueError(f"no object of group {empty} in the images that recall is measured on")
    return {
        method: {
            name: {f"recall@{count}": float((own[rows] <= count).mean()) for count in recall_at}
            for name, rows in members.items()
        }
        for method, own in hits.by_method.items()
    }


def classes_won(
    hits: Hits, classes: Iterable[int], winners: Iterable[str], recall_at: Sequence[int]
) -> dict[str, dict[str, dict[str, int]]]:
    """Return winner → other method → {"recall@K": number of classes with higher recall}.

    Classes with equal recall or without objects count for neither. Source: Mask-free OVIS,
    figure 2B, which shows recall per class.
    """
    rows = [hits.category_ids == category_id for category_id in classes]
    found = {
        method: np.array([[(own[own_rows] <= k).sum() for k in recall_at] for own_rows in rows])
        for method, own in hits.by_method.items()
    }
    return {
        winner: {
            other: {
                f"recall@{k}": int(number)
                for k, number in zip(
                    recall_at, (found[winner] > found[other]).sum(axis=0), strict=True
                )
            }
            for other in found
            if other != winner
        }
        for winner in winners
    }


def image_objects(
    images: Iterable[EncodedImage], annotations: Sequence[dict]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (boxes_xyxy float32 (S, 4), category ids (S,)) per image; crowds are left out."""
    by_image: dict[int, list[dict]] = {}
    for annotation in annotations:
        if not annotation.get("iscrowd"):
            by_image.setdefault(annotation["image_id"], []).append(annotation)
    for image in images:
        own = by_image.get(image.image_id, [])
        boxes = np.array([a["bbox"] for a in own], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        yield boxes, np.array([a["category_id"] for a in own], np.int64)
