"""All measurements of one shard's pictures, as tables with one row per label, target or object.

Shape legend: R labels, N targets, S objects of the shard; G + 1 rounds, h w cells of a map.
"""

from dataclasses import dataclass

import numpy as np

from stages.common.coco import Instances, make_instances
from stages.common.recall import first_hits
from stages.common.seeding import numpy_generator
from stages.quality.agreement import Columns, measure_labels, measure_pointing
from stages.quality.params import QualityParams


@dataclass(frozen=True)
class ShardInputs:
    """What the stages before made of the pictures of one shard.

    Attributes:
        images: COCO's `images` entries.
        annotations: pseudo-annotations per picture.
        truth: ground-truth annotations per picture.
        target_image_ids, target_category_ids: int64 (N,).
        maps: float16 (N, G + 1, h, w), activation after each round.
        proposals, ranking: boxes_xyxy float32 per picture, in order.
    """

    images: list[dict]
    annotations: dict[int, list[dict]]
    truth: dict[int, list[dict]]
    target_image_ids: np.ndarray
    target_category_ids: np.ndarray
    maps: np.ndarray
    proposals: dict[int, np.ndarray]
    ranking: dict[int, np.ndarray]

    def target_rows(self) -> dict[int, dict[int, int]]:
        """Return the row of each target, by picture and class."""
        rows: dict[int, dict[int, int]] = {}
        targets = zip(
            self.target_image_ids.tolist(), self.target_category_ids.tolist(), strict=True
        )
        for row, (image_id, category_id) in enumerate(targets):
            rows.setdefault(image_id, {})[category_id] = row
        return rows


@dataclass(frozen=True)
class Tables:
    """Measurements: per label, per target whose class is there, per object of base or novel."""

    labels: Columns
    pointing: Columns
    objects: Columns


def measure_shard(
    inputs: ShardInputs, category_ids: list[int], params: QualityParams, seed: int
) -> Tables:
    """Measure every picture of a shard; `category_ids` are those of base and novel classes.

    Raises:
        ValueError: a label has no activation map.
    """
    target_rows = inputs.target_rows()
    labels, pointing, objects = [], [], []
    for image in inputs.images:
        image_id, image_hw = image["id"], (image["height"], image["width"])
        truth = make_instances(inputs.truth.get(image_id, []))
        rows = target_rows.get(image_id, {})
        maps = inputs.maps[list(rows.values())]
        pointing.append(measure_pointing(maps, np.array(list(rows), np.int64), truth, image_hw))
        annotated = make_instances(inputs.annotations.get(image_id, []))
        if len(annotated):
            maps = inputs.maps[_rows_of(annotated, rows, image_id), -1]
            thresholds = params.activation_thresholds
            labels.append(measure_labels(annotated, truth, maps, image_hw, thresholds))
        targets = truth.select(~truth.crowd & np.isin(truth.category_ids, category_ids))
        objects.append(_measure_proposals(inputs, image_id, targets, seed))
    return Tables(join_columns(labels), join_columns(pointing), join_columns(objects))


def join_columns(parts: list[Columns]) -> Columns:
    """Return tables below each other; those without columns (no labels in a shard) add nothing."""
    filled = [part for part in parts if part]
    return {name: np.concatenate([part[name] for part in filled]) for name in (filled or [{}])[0]}


def _rows_of(annotated: Instances, rows: dict[int, int], image_id: int) -> list[int]:
    missing = sorted(set(annotated.category_ids.tolist()) - rows.keys())
    if missing:
        raise ValueError(
            f"data/labels/pseudo_annotations.json: image_id {image_id} has labels of categories"
            f" {missing} that data/activation has no map of; run `dvc repro labels`"
        )
    return [rows[category_id] for category_id in annotated.category_ids.tolist()]


def _measure_proposals(
    inputs: ShardInputs, image_id: int, objects: Instances, seed: int
) -> Columns:
    nothing = np.zeros((0, 4), np.float32)
    searched = inputs.proposals.get(image_id, nothing)
    shuffled = numpy_generator(seed, "proposals in random order", image_id).permutation(searched)
    ordered = {
        "selective_search": searched,
        "random_order": shuffled,
        "ranking": inputs.ranking.get(image_id, nothing),
    }
    hits = {name: first_hits(boxes, objects.boxes_xyxy) for name, boxes in ordered.items()}
    return {"category_id": objects.category_ids, **hits}
