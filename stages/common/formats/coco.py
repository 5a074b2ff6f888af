"""COCO instances in memory: annotations grouped by image and matched to objects of their class.

Shape legend: R annotations of one image, S objects they are compared with. Frame: pixels of the
stored image, boxes as corners (x0, y0, x1, y1).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Float32, Int64

from stages.common.formats.images import SCHEMA
from stages.common.geometry.boxes import pairwise_iou, xywh_to_xyxy
from stages.common.geometry.masks import pairwise_mask_iou


@dataclass(frozen=True)
class Instances:
    """The annotations of one image, in the file's order.

    Attributes:
        crowd: True if an annotation stands for many objects.
        segmentations: R masks in COCO RLE.
    """

    boxes_xyxy: Float32[np.ndarray, "R 4"]
    category_ids: Int64[np.ndarray, " R"]
    crowd: Bool[np.ndarray, " R"]
    segmentations: list[dict]

    def __len__(self) -> int:
        return len(self.category_ids)

    def select(self, keep: Bool[np.ndarray, " R"]) -> "Instances":
        """Return the annotations for which `keep` is True."""
        kept = [self.segmentations[index] for index in np.flatnonzero(keep)]
        return Instances(self.boxes_xyxy[keep], self.category_ids[keep], self.crowd[keep], kept)


def make_instances(annotations: list[dict]) -> Instances:
    """Return the COCO annotations of one image, possibly none, as arrays."""
    boxes_xywh = np.array([a["bbox"] for a in annotations], np.float32).reshape(-1, 4)
    return Instances(
        xywh_to_xyxy(boxes_xywh),
        np.array([a["category_id"] for a in annotations], np.int64),
        np.array([a.get("iscrowd", 0) for a in annotations], bool),
        [a["segmentation"] for a in annotations],
    )


def group_by_image(annotations: Iterable[dict]) -> dict[int, list[dict]]:
    """Return the annotations of each image that has any; their order is kept."""
    groups: dict[int, list[dict]] = {}
    for annotation in annotations:
        groups.setdefault(annotation["image_id"], []).append(annotation)
    return groups


def read_image_list(*paths: Path) -> list[dict]:
    """Return COCO's `images` entries of image shards without reading the images.

    Raises:
        FileNotFoundError: a shard does not exist.
    """
    entries = []
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path.absolute()}: no such image shard; `dvc repro` makes it")
        columns = [name for name in SCHEMA.names if name != "bytes"]
        for row in pq.read_table(path, columns=columns).to_pylist():
            entries.append({"id": row.pop("image_id"), **row})
    return entries


def best_box_iou(instances: Instances, objects: Instances) -> Float[np.ndarray, " R"]:
    """Return the box IoU with the best object of the same class, 0 if there is none."""
    return _best(pairwise_iou(instances.boxes_xyxy, objects.boxes_xyxy), instances, objects)


def best_mask_iou(instances: Instances, objects: Instances) -> Float[np.ndarray, " R"]:
    """Return the mask IoU with the best object of the same class, 0 if there is none."""
    iou = pairwise_mask_iou(instances.segmentations, objects.segmentations)
    return _best(iou, instances, objects)


def _best(iou: np.ndarray, instances: Instances, objects: Instances) -> np.ndarray:
    same_class = instances.category_ids[:, None] == objects.category_ids[None, :]
    return np.where(same_class, iou, 0.0).max(axis=1, initial=0.0)
