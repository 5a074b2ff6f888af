"""Merge the pseudo-masks of all shards into one COCO file: `python -m stages.pseudo_labels`.

Of data/activation only the facts are read: which targets have no map, and so no mask.
"""

from pathlib import Path

from stages.common.formats.categories import read_categories
from stages.common.formats.coco import read_image_list
from stages.common.runtime.params import read_section, read_shards
from stages.common.runtime.storage import read_facts, read_json, write_json
from stages.pseudo_labels.merge import check_masks, make_dataset, split_masks
from stages.pseudo_labels.params import PseudoLabelsParams
from stages.pseudo_labels.summary import (
    add_facts,
    check_targets,
    check_yield,
    label_metrics,
    make_report,
)

DOWNLOAD = Path("data/download")
ACTIVATION = Path("data/activation")
MASKS = Path("data/pseudo_masks")
OUTPUT = Path("data/pseudo_labels")


def main() -> None:
    """Write pseudo_annotations.json, metrics.json and report.json."""
    params = read_section("pseudo_labels", PseudoLabelsParams)
    shards = read_shards()
    categories = read_categories(DOWNLOAD / "categories.json")
    images = read_image_list(*(DOWNLOAD / f"images/train/{shard}.parquet" for shard in shards))
    images.sort(key=lambda image: image["id"])
    facts = add_facts(read_facts(ACTIVATION / f"{shard}.safetensors") for shard in shards)
    masks = [mask for shard in shards for mask in read_json(MASKS / f"{shard}.json")]

    check_masks(masks, images, categories)
    kept, dropped = split_masks(masks, params)
    dataset = make_dataset(kept, images, categories)
    report = make_report(dataset, dropped, categories, facts)
    metrics = label_metrics(dataset, report)

    write_json(OUTPUT / "report.json", report)  # first: it explains why a check fails
    check_targets(report, params.max_untargeted_fraction)
    check_yield(metrics, params.min_labelled_fraction)
    write_json(OUTPUT / "pseudo_annotations.json", dataset, indent=None)
    write_json(OUTPUT / "metrics.json", metrics)
    print(
        f"pseudo_labels: {metrics['labels']} of {metrics['targets']} masks on"
        f" {metrics['labelled_images']} of {metrics['images']} images"
    )
    if constant := metrics["dropped"]["constant_map"]:
        print(f"pseudo_labels: {constant} targets were left out for a constant activation map")
    for split, names in report["categories_without_labels"].items():
        if names:
            print(f"pseudo_labels: no pseudo-label of {split} {', '.join(names)}")


if __name__ == "__main__":
    main()
