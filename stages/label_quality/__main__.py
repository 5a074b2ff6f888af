"""Measure pseudo-labels and proposals against ground truth: `python -m stages.label_quality`.

One process per core measures images; OVIS_WORKERS sets another number. No stage reads the results.
Without ground truth the labels are only counted and drawn, and the metrics say so.
"""

from functools import partial
from pathlib import Path

from stages.common.drawing.montage import write_png
from stages.common.formats.captions import read_captions
from stages.common.formats.categories import read_categories
from stages.common.formats.coco import group_by_image, make_instances, read_image_list
from stages.common.formats.ground_truth import SKIPPED, is_annotated
from stages.common.formats.outlines import ignore_unoutlined
from stages.common.formats.stored_images import find_images
from stages.common.formats.tables import boxes_by_image
from stages.common.runtime.parallel import map_in_order, num_workers
from stages.common.runtime.params import read_section, read_seed, read_shards
from stages.common.runtime.progress import track
from stages.common.runtime.seeding import numpy_generator
from stages.common.runtime.storage import (
    read_json,
    read_table,
    read_tensors,
    write_json,
    write_rows,
)
from stages.label_quality import unannotated
from stages.label_quality.figure import ShownLabel, choose_labels, draw_montage
from stages.label_quality.params import LabelQualityParams, MapParams
from stages.label_quality.shard import (
    MapsInUse,
    ShardInputs,
    Tables,
    join_tables,
    measure_image,
)
from stages.label_quality.summary import NOTHING, per_class_rows, quality_metrics, recall_rows

DATA = Path("data")
DOWNLOAD = DATA / "download"
GROUND_TRUTH = DOWNLOAD / "ground_truth/train.json"
OUTPUT = DATA / "label_quality"


def main() -> None:
    """Write metrics.json, per_class.csv, recall.csv and montage.png."""
    params, seed, shards = (
        read_section("label_quality", LabelQualityParams),
        read_seed(),
        read_shards(),
    )
    in_use = MapsInUse(
        read_section("pseudo_boxes", MapParams), read_section("pseudo_masks", MapParams)
    )
    categories = read_categories(DOWNLOAD / "categories.json")
    category_ids = [category.id for category in categories]
    labels = read_json(DATA / "pseudo_labels/pseudo_annotations.json")["annotations"]
    annotations = group_by_image(labels)
    truth = group_by_image(ignore_unoutlined(read_json(GROUND_TRUTH)["annotations"]))
    annotated = is_annotated(GROUND_TRUTH)
    random = numpy_generator(seed, "quality montage")
    chosen = choose_labels(labels, categories, params.montage_rows, random)

    measure = partial(
        measure_image, category_ids=category_ids, params=params, in_use=in_use, seed=seed
    )
    measured: list[Tables] = []
    examples: dict[int, ShownLabel] = {}
    for shard in track(shards, "label_quality, shards"):
        inputs = _read_shard(shard, annotations, truth)
        if annotated:
            measured.append(
                join_tables(map_in_order(measure, inputs.image_inputs(), num_workers()))
            )
        examples |= _make_examples(shard, inputs, chosen, categories)
    in_order = [examples[annotation["id"]] for annotation in chosen]
    write_png(OUTPUT / "montage.png", draw_montage(in_order, categories, annotated))
    if not annotated:
        write_json(OUTPUT / "metrics.json", unannotated.quality_metrics(labels, categories))
        write_rows(OUTPUT / "per_class.csv", unannotated.per_class_rows(labels, categories))
        write_rows(OUTPUT / "recall.csv", unannotated.recall_rows(params))
        print(f"label_quality: {SKIPPED}")
        return
    tables = join_tables(measured)
    metrics = quality_metrics(tables, categories, params)
    write_json(OUTPUT / "metrics.json", metrics)
    write_rows(OUTPUT / "per_class.csv", per_class_rows(tables, categories))
    write_rows(OUTPUT / "recall.csv", recall_rows(metrics, params))
    objects = {
        own["category_id"] for group in truth.values() for own in group if not own["iscrowd"]
    }
    for group in ("base", "novel"):
        own = {category.id for category in categories if category.split == group}
        box, mask = metrics["boxes"][group], metrics["masks"]["pseudo"][group]
        ious = f"IoU of boxes {box['mean_iou']:.3f}, masks {mask['mean_iou']:.3f}"
        nothing = not own & objects or box["mean_iou"] == NOTHING
        found = "no objects to measure" if nothing else ious
        print(f"label_quality, {group}: {found}")


def _read_shard(
    shard: int, annotations: dict[int, list[dict]], truth: dict[int, list[dict]]
) -> ShardInputs:
    activation, _ = read_tensors(DATA / f"activation/{shard}.safetensors")
    return ShardInputs(
        read_image_list(DOWNLOAD / f"images/train/{shard}.parquet"),
        annotations,
        truth,
        activation["image_id"].numpy(),
        activation["category_id"].numpy(),
        activation["maps"].numpy(),
        boxes_by_image(read_table(DATA / f"proposals/{shard}.parquet")),
        boxes_by_image(read_table(DATA / f"ranking/{shard}.parquet")),
    )


def _make_examples(
    shard: int, inputs: ShardInputs, chosen: list[dict], categories: list
) -> dict[int, ShownLabel]:
    """Return the montage's examples whose images are in this shard, by annotation id."""
    image_ids = {image["id"] for image in inputs.images}
    here = group_by_image(
        annotation for annotation in chosen if annotation["image_id"] in image_ids
    )
    captions = read_captions(DOWNLOAD / f"captions/train/{shard}.json") if here else {}
    by_id = {category.id: category for category in categories}
    rows, examples = inputs.target_rows(), {}
    images = find_images(here, DOWNLOAD / f"images/train/{shard}.parquet") if here else []
    for image in images:
        for annotation in here[image.image_id]:
            category_id = annotation["category_id"]
            objects = make_instances(inputs.truth.get(image.image_id, []))
            examples[annotation["id"]] = ShownLabel(
                image.decode(),
                by_id[category_id],
                captions.get(image.image_id, []),
                inputs.maps[rows[image.image_id][category_id]],
                make_instances([annotation]),
                objects.select(~objects.crowd & (objects.category_ids == category_id)),
            )
    return examples


if __name__ == "__main__":
    main()
