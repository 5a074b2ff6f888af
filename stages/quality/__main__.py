"""Measure pseudo-labels and proposals against ground truth: `python -m stages.quality`.

Pictures are measured by as many processes as there are cores (OVIS_WORKERS sets another number).

Measures only: nothing it writes is read by a stage that trains. Without ground truth it says so,
and counts and shows the labels.
"""

from functools import partial
from pathlib import Path

from stages.common.captions import read_captions
from stages.common.categories import read_categories
from stages.common.coco import group_by_image, make_instances, read_image_list
from stages.common.ground_truth import SKIPPED, is_annotated
from stages.common.montage import write_png
from stages.common.outlines import ignore_unoutlined
from stages.common.parallel import map_in_order, num_workers
from stages.common.params import read_section, read_seed, read_shards
from stages.common.progress import track
from stages.common.seeding import numpy_generator
from stages.common.storage import read_json, read_table, read_tensors, write_json, write_rows
from stages.common.stored_pictures import find_pictures
from stages.common.tables import boxes_by_image
from stages.quality import unannotated
from stages.quality.figure import Example, choose_labels, draw_montage
from stages.quality.params import MapParams, QualityParams
from stages.quality.shard import (
    MapsInUse,
    ShardInputs,
    Tables,
    join_tables,
    measure_picture,
)
from stages.quality.summary import NOTHING, make_metrics, per_class_rows, recall_rows

DATA = Path("data")
DOWNLOAD = DATA / "download"
GROUND_TRUTH = DOWNLOAD / "ground_truth/train.json"
OUTPUT = DATA / "quality"


def main() -> None:
    """Write metrics.json, per_class.csv, recall.csv and montage.png."""
    params, seed, shards = read_section("quality", QualityParams), read_seed(), read_shards()
    in_use = MapsInUse(read_section("boxes", MapParams), read_section("masks", MapParams))
    categories = read_categories(DOWNLOAD / "categories.json")
    category_ids = [category.id for category in categories]
    labels = read_json(DATA / "labels/pseudo_annotations.json")["annotations"]
    annotations = group_by_image(labels)
    truth = group_by_image(ignore_unoutlined(read_json(GROUND_TRUTH)["annotations"]))
    annotated = is_annotated(GROUND_TRUTH)
    random = numpy_generator(seed, "quality montage")
    chosen = choose_labels(labels, categories, params.montage_rows, random)

    measure = partial(
        measure_picture, category_ids=category_ids, params=params, in_use=in_use, seed=seed
    )
    measured: list[Tables] = []
    examples: dict[int, Example] = {}
    for shard in track(shards, "quality, shards"):
        inputs = _read_shard(shard, annotations, truth)
        if annotated:
            measured.append(join_tables(map_in_order(measure, inputs.pictures(), num_workers())))
        examples |= _make_examples(shard, inputs, chosen, categories)
    in_order = [examples[annotation["id"]] for annotation in chosen]
    write_png(OUTPUT / "montage.png", draw_montage(in_order, categories, annotated))
    if not annotated:
        write_json(OUTPUT / "metrics.json", unannotated.make_metrics(labels, categories))
        write_rows(OUTPUT / "per_class.csv", unannotated.per_class_rows(labels, categories))
        write_rows(OUTPUT / "recall.csv", unannotated.recall_rows(params))
        print(f"quality: {SKIPPED}")
        return
    tables = join_tables(measured)
    metrics = make_metrics(tables, categories, params)
    write_json(OUTPUT / "metrics.json", metrics)
    write_rows(OUTPUT / "per_class.csv", per_class_rows(tables, categories))
    write_rows(OUTPUT / "recall.csv", recall_rows(metrics, params))
    for group in ("base", "novel"):
        box, mask = metrics["boxes"][group], metrics["masks"]["pseudo"][group]
        ious = f"IoU of boxes {box['mean_iou']:.3f}, masks {mask['mean_iou']:.3f}"
        print(
            f"quality, {group}: {'no objects to measure' if box['mean_iou'] == NOTHING else ious}"
        )


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
) -> dict[int, Example]:
    """Return the montage's examples that lie in this shard, by annotation id."""
    images = {image["id"] for image in inputs.images}
    here = group_by_image(annotation for annotation in chosen if annotation["image_id"] in images)
    captions = read_captions(DOWNLOAD / f"captions/train/{shard}.json") if here else {}
    by_id = {category.id: category for category in categories}
    rows, examples = inputs.target_rows(), {}
    pictures = find_pictures(here, DOWNLOAD / f"images/train/{shard}.parquet") if here else []
    for picture in pictures:
        for annotation in here[picture.image_id]:
            category_id = annotation["category_id"]
            objects = make_instances(inputs.truth.get(picture.image_id, []))
            examples[annotation["id"]] = Example(
                picture.decode(),
                by_id[category_id],
                captions.get(picture.image_id, []),
                inputs.maps[rows[picture.image_id][category_id]],
                make_instances([annotation]),
                objects.select(~objects.crowd & (objects.category_ids == category_id)),
            )
    return examples


if __name__ == "__main__":
    main()
