"""All measurements of one shard's images, as tables with one row per label, target or object.

Images are measured one at a time, so that several processes can divide them.

Shape legend: R labels, N targets, S objects of the shard, n targets of one image; G + 1 rounds,
h w cells of a map.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from stages.common.formats.coco import Instances, make_instances
from stages.common.formats.outlines import fill_unoutlined
from stages.common.geometry.activation_maps import smooth_maps
from stages.common.geometry.recall import first_hits
from stages.common.runtime.seeding import numpy_generator
from stages.label_quality.agreement import Columns, measure_labels, measure_pointing
from stages.label_quality.params import LabelQualityParams, MapParams
from stages.label_quality.simple_masks import LabelMaps, measure_masks, measure_squares


@dataclass(frozen=True)
class ImageInputs:
    """The part of `ShardInputs` that belongs to one image."""

    image_id: int
    image_hw: tuple[int, int]
    annotations: list[dict]
    truth: list[dict]
    target_category_ids: np.ndarray  # int64 (n,)
    maps: np.ndarray  # float16 (n, G + 1, h, w)
    proposals: np.ndarray  # boxes_xyxy float32, best first
    ranking: np.ndarray  # boxes_xyxy float32, best first


@dataclass(frozen=True)
class ShardInputs:
    """What the earlier stages computed for the images of one shard.

    Attributes:
        images: COCO's `images` entries.
        annotations: pseudo-annotations per image.
        truth: ground-truth annotations per image.
        target_image_ids, target_category_ids: int64 (N,).
        maps: float16 (N, G + 1, h, w), activation after each round.
        proposals, ranking: boxes_xyxy float32 per image, best first.
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
        """Return the row of each target, by image and class."""
        rows: dict[int, dict[int, int]] = {}
        targets = zip(
            self.target_image_ids.tolist(), self.target_category_ids.tolist(), strict=True
        )
        for row, (image_id, category_id) in enumerate(targets):
            rows.setdefault(image_id, {})[category_id] = row
        return rows

    def image_inputs(self) -> Iterator[ImageInputs]:
        """Yield the inputs of each image."""
        target_rows, nothing = self.target_rows(), np.zeros((0, 4), np.float32)
        for image in self.images:
            image_id = image["id"]
            rows = target_rows.get(image_id, {})
            yield ImageInputs(
                image_id,
                (image["height"], image["width"]),
                self.annotations.get(image_id, []),
                self.truth.get(image_id, []),
                np.array([*rows], np.int64),
                self.maps[[*rows.values()]],
                self.proposals.get(image_id, nothing),
                self.ranking.get(image_id, nothing),
            )


@dataclass(frozen=True)
class Tables:
    """Measurements per label, per target whose class is present, and per base or novel object."""

    labels: Columns
    pointing: Columns
    objects: Columns


@dataclass(frozen=True)
class MapsInUse:
    """Which maps chose the boxes, and which seeded the masks."""

    boxes: MapParams
    masks: MapParams


def measure_image(
    inputs: ImageInputs,
    category_ids: list[int],
    params: LabelQualityParams,
    in_use: MapsInUse,
    seed: int,
) -> Tables:
    """Return the measurements of one image.

    Args:
        inputs: of the image.
        category_ids: ids of the base and novel classes.
        params: what to measure.
        in_use: the maps that the pipeline uses.
        seed: of the random order of proposals.

    Raises:
        ValueError: a label has no activation map.
    """
    truth = make_instances(fill_unoutlined(inputs.truth))
    annotated = make_instances(inputs.annotations)
    targets, image_hw = inputs.target_category_ids, inputs.image_hw
    pointing = measure_pointing(inputs.maps, targets, truth, image_hw)
    labels: Columns = {}
    if len(annotated):
        maps = _label_maps(inputs.maps[_rows_of(annotated, inputs)], image_hw, in_use)
        things = truth.select(~truth.crowd)
        sides = params.square_sides
        labels = {
            **measure_labels(annotated, truth),
            **measure_masks(annotated, things, maps, image_hw, params),
            **measure_squares(annotated, things, maps.choosing, image_hw, sides),
        }
    objects = truth.select(~truth.crowd & np.isin(truth.category_ids, category_ids))
    return Tables(labels, pointing, _measure_proposals(inputs, objects, seed))


def _label_maps(maps: np.ndarray, image_hw: tuple[int, int], in_use: MapsInUse) -> LabelMaps:
    """Return the labels' maps from those of all rounds, float16 (R, G + 1, h, w)."""
    rounds = maps.astype(np.float32)
    seeding, choosing = (
        smooth_maps(rounds[:, -1 if use.activation_round == "last" else 0], image_hw, use.smoothing)
        for use in (in_use.masks, in_use.boxes)
    )
    return LabelMaps(rounds[:, -1], seeding, choosing)


def join_tables(parts: Iterable[Tables]) -> Tables:
    """Return one table of each kind with the rows of all parts."""
    every = list(parts)
    return Tables(
        join_columns([tables.labels for tables in every]),
        join_columns([tables.pointing for tables in every]),
        join_columns([tables.objects for tables in every]),
    )


def join_columns(parts: list[Columns]) -> Columns:
    """Concatenate the columns of all parts; a part without columns (no labels) adds nothing."""
    filled = [part for part in parts if part]
    return {name: np.concatenate([part[name] for part in filled]) for name in (filled or [{}])[0]}


def _rows_of(annotated: Instances, inputs: ImageInputs) -> list[int]:
    rows = {category: row for row, category in enumerate(inputs.target_category_ids.tolist())}
    missing = sorted(set(annotated.category_ids.tolist()) - rows.keys())
    if missing:
        raise ValueError(
            f"data/pseudo_labels/pseudo_annotations.json: image_id {inputs.image_id} has labels of"
            f" categories {missing} that data/activation has no map of;"
            " run `dvc repro pseudo_labels`"
        )
    return [rows[category_id] for category_id in annotated.category_ids.tolist()]


def _measure_proposals(inputs: ImageInputs, objects: Instances, seed: int) -> Columns:
    random = numpy_generator(seed, "proposals in random order", inputs.image_id)
    ordered = {
        "selective_search": inputs.proposals,
        "random_order": random.permutation(inputs.proposals),
        "ranking": inputs.ranking,
    }
    hits = {name: first_hits(boxes, objects.boxes_xyxy) for name, boxes in ordered.items()}
    return {"category_id": objects.category_ids, **hits}
