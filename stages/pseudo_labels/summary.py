"""Metrics of the pseudo-labels, and a report of what was dropped and why."""

from collections import Counter
from collections.abc import Iterable

from stages.common.formats.categories import Category
from stages.pseudo_labels.merge import CONSTANT, SMALL, UNSURE


def add_facts(facts: Iterable[dict]) -> dict:
    """Return the facts of stage `activation` over all shards: counts added, lists joined."""
    every = list(facts)
    constant = [target for one in every for target in one.get("constant_maps", [])]
    return {
        "images": sum(one["images"] for one in every),
        "images_without_target": sum(one["images_without_target"] for one in every),
        "mentions_cut_off": sum(one.get("mentions_cut_off", 0) for one in every),
        "constant_maps": sorted(constant, key=lambda t: (t["image_id"], t["category_id"])),
    }


def make_report(
    dataset: dict, dropped: list[dict], categories: list[Category], facts: dict
) -> dict:
    """Return the number of labels per class, and the targets, images and classes without a label.

    Args:
        dataset: the labels, from `make_dataset`.
        dropped: masks with a `reason`.
        categories: base and novel classes.
        facts: from `add_facts`. Targets with a constant map count as dropped; they have neither
            area nor score.
    """
    counts = Counter(annotation["category_id"] for annotation in dataset["annotations"])
    names = {category.id: category.name for category in categories}
    labelled = {annotation["image_id"] for annotation in dataset["annotations"]}
    constant = facts["constant_maps"]
    return {
        "activation": {**facts, "constant_maps": len(constant)},
        "labels_per_category": {category.name: counts[category.id] for category in categories},
        "categories_without_labels": {
            split: [c.name for c in categories if c.split == split and not counts[c.id]]
            for split in ("base", "novel")
        },
        "images_without_labels": [i["id"] for i in dataset["images"] if i["id"] not in labelled],
        "dropped": [
            *(
                {
                    "image_id": mask["image_id"],
                    "category": names[mask["category_id"]],
                    "area": mask["area"],
                    "score": mask["score"],
                    "reason": mask["reason"],
                }
                for mask in dropped
            ),
            *(
                {
                    "image_id": target["image_id"],
                    "category": names[target["category_id"]],
                    "reason": CONSTANT,
                }
                for target in constant
            ),
        ],
    }


def label_metrics(dataset: dict, report: dict) -> dict:
    """Return the yield: counts of images, targets and labels, and fractions of images.

    Every named object is a target, also one whose activation map is constant.
    """
    num_images, num_labels = len(dataset["images"]), len(dataset["annotations"])
    num_labelled = num_images - len(report["images_without_labels"])
    reasons = Counter(entry["reason"] for entry in report["dropped"])
    metrics = {
        "images": num_images,
        "labelled_images": num_labelled,
        "labelled_fraction": num_labelled / max(num_images, 1),
        "untargeted_images": report["activation"]["images_without_target"],
        "targets": num_labels + len(report["dropped"]),
        "labels": num_labels,
        "labels_per_image": num_labels / max(num_images, 1),
        "dropped": {
            "too_small": reasons[SMALL],
            "low_score": reasons[UNSURE],
            "constant_map": reasons[CONSTANT],
        },
    }
    for split in ("base", "novel"):
        names = [entry["name"] for entry in dataset["categories"] if entry["split"] == split]
        metrics[split] = {
            "labels": sum(report["labels_per_category"][name] for name in names),
            "categories_without_labels": len(report["categories_without_labels"][split]),
        }
    return metrics


def check_targets(report: dict, max_untargeted_fraction: float) -> None:
    """Check that enough images of all shards have a target.

    Raises:
        ValueError: the fraction of images without one is above the limit.
    """
    told = report["activation"]
    total, without = told["images"], told["images_without_target"]
    if without > max_untargeted_fraction * total:
        raise ValueError(
            f"{without} of {total} training images have no target ({without / total:.1%}), above"
            " params.yaml: pseudo_labels.max_untargeted_fraction ="
            f" {max_untargeted_fraction:.1%}: their captions name no class within the tokens that"
            f" the model reads ({told['mentions_cut_off']} mentions are cut off), or the"
            f" activation map is constant ({told['constant_maps']} targets); check captions and"
            " forms in data/download, or raise the limit"
        )


def check_yield(metrics: dict, min_labelled_fraction: float) -> None:
    """Check that enough images have a label.

    Raises:
        ValueError: the fraction of labelled images is below the limit, or there is no label.
    """
    found = metrics["labelled_fraction"]
    if found < min_labelled_fraction or not metrics["labels"]:
        raise ValueError(
            f"only {metrics['labelled_images']} of {metrics['images']} images have a pseudo-label"
            f" ({found:.1%}), fewer than params.yaml: pseudo_labels.min_labelled_fraction ="
            f" {min_labelled_fraction:.1%}; data/pseudo_labels/report.json lists what was"
            " dropped and why: relax pseudo_labels.min_area or keep_fraction, check the earlier"
            " stages, or lower the limit"
        )
