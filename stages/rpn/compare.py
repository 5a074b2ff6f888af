"""Proposal recall of several methods on pictures that none of them was trained on.

Mask-free OVIS, figure 2. R boxes of a picture, S its objects; boxes in pixels of the picture.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch

from stages.common.images import Picture
from stages.common.recall import first_hits
from stages.common.seeding import numpy_generator
from stages.common.selective_search import SearchSettings, selective_search
from stages.models.mask_rcnn import MaskRcnn, to_unit_range
from stages.models.wspn import Wspn
from stages.models.wspn_ranking import RankingSettings, order_in_layers, rank_proposals


@torch.no_grad()
def region_proposals(detector: MaskRcnn, image: np.ndarray) -> np.ndarray:
    """Return the detector's region proposals float32 (R, 4) of a picture, best first."""
    pixels = to_unit_range(image).to(next(detector.parameters()).device)
    batch, _ = detector.transform([pixels])
    boxes, _ = detector.proposals(batch, detector.backbone(batch.tensors))
    seen_hw, (height, width) = batch.image_sizes[0], image.shape[:2]
    return boxes[0].cpu().numpy() * np.array(
        [width / seen_hw[1], height / seen_hw[0]] * 2, np.float32
    )


def ordered_boxes(
    picture: Picture,
    detector: MaskRcnn,
    wspn: Wspn,
    search: SearchSettings,
    ranking: RankingSettings,
    seed: int,
) -> dict[str, np.ndarray]:
    """Return the boxes of a picture by method, best first.

    `rpn_in_layers` are the detector's proposals thinned out the way the proposal network's are,
    so that no difference comes from suppression alone.
    """
    image = picture.decode()
    whole = np.array([[0, 0, picture.width, picture.height]], np.float32)
    searched = selective_search(image, search, seed, picture.image_id)
    searched = searched if len(searched) else whole
    random = numpy_generator(seed, "proposals in random order", picture.image_id)
    proposed = torch.from_numpy(region_proposals(detector, image))
    falling = torch.linspace(1, 0, len(proposed))
    return {
        "selective_search": searched,
        "random_order": random.permutation(searched),
        "wspn": rank_proposals(wspn, image, searched, ranking)[0],
        "rpn": proposed.numpy(),
        "rpn_in_layers": proposed[order_in_layers(proposed, falling, ranking.nms_iou)[0]].numpy(),
    }


def recall_table(
    found: Iterable[Mapping[str, np.ndarray]],
    objects: Iterable[tuple[np.ndarray, np.ndarray]],
    groups: Mapping[str, set[int]],
    recall_at: Sequence[int],
) -> dict[str, dict[str, dict[str, float]]]:
    """Return method → group → {"recall@K": share of the group's objects found at IoU 0.5}.

    Args:
        found: ordered boxes by method, per picture.
        objects: (boxes (S, 4), category ids (S,)) per picture.
        groups: category ids by name.
        recall_at: numbers of boxes K.

    Raises:
        ValueError: a group without any object.
    """
    hits: dict[str, list[np.ndarray]] = {}
    categories = []
    for boxes, (objects_xyxy, category_ids) in zip(found, objects, strict=True):
        categories.append(category_ids)
        for method, ordered in boxes.items():
            hits.setdefault(method, []).append(first_hits(ordered, objects_xyxy))
    every = np.concatenate([np.zeros(0, np.int64), *categories])
    members = {name: np.isin(every, sorted(ids)) for name, ids in groups.items()}
    empty = sorted(name for name, rows in members.items() if not rows.any())
    if empty:
        raise ValueError(f"no object of group {empty} in the pictures that recall is measured on")
    return {
        method: {
            name: {
                f"recall@{count}": float((np.concatenate(values)[rows] <= count).mean())
                for count in recall_at
            }
            for name, rows in members.items()
        }
        for method, values in hits.items()
    }


def picture_objects(
    pictures: Iterable[Picture], annotations: Sequence[dict]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (boxes_xyxy float32 (S, 4), category ids (S,)) per picture; crowds are left out."""
    by_image: dict[int, list[dict]] = {}
    for annotation in annotations:
        if not annotation.get("iscrowd"):
            by_image.setdefault(annotation["image_id"], []).append(annotation)
    for picture in pictures:
        own = by_image.get(picture.image_id, [])
        boxes = np.array([a["bbox"] for a in own], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        yield boxes, np.array([a["category_id"] for a in own], np.int64)
