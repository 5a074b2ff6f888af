"""What came of the pseudo-masks: numbers for DVC, and a report of who was left out and why."""

from collections import Counter

from stages.common.categories import Category
from stages.labels.merge import SMALL, UNSURE


def make_report(dataset: dict, dropped: list[dict], categories: list[Category]) -> dict:
    """Return the labels of each class, classes and pictures without one, and the dropped masks."""
    counts = Counter(annotation["category_id"] for annotation in dataset["annotations"])
    names = {category.id: category.name for category in categories}
    labelled = {annotation["image_id"] for annotation in dataset["annotations"]}
    return {
        "labels_per_category": {category.name: counts[category.id] for category in categories},
        "categories_without_labels": {
            split: [c.name for c in categories if c.split == split and not counts[c.id]]
            for split in ("base", "novel")
        },
        "images_without_labels": [i["id"] for i in dataset["images"] if i["id"] not in labelled],
        "dropped": [
            {
                "image_id": mask["image_id"],
                "category": names[mask["category_id"]],
                "area": mask["area"],
                "score": mask["score"],
                "reason": mask["reason"],
            }
            for mask in dropped
        ],
    }


def make_metrics(dataset: dict, report: dict) -> dict:
    """Return the yield: counts of pictures, targets (masks received) and labels kept."""
    num_images, num_labels = len(dataset["images"]), len(dataset["annotations"])
    num_labelled = num_images - len(report["images_without_labels"])
    reasons = Counter(entry["reason"] for entry in report["dropped"])
    metrics = {
        "images": num_images,
        "labelled_images": num_labelled,
        "labelled_fraction": num_labelled / max(num_images, 1),
        "targets": num_labels + len(report["dropped"]),
        "labels": num_labels,
        "labels_per_image": num_labels / max(num_images, 1),
        "dropped": {"too_small": reasons[SMALL], "low_score": reasons[UNSURE]},
    }
    for split in ("base", "novel"):
        names = [entry["name"] for entry in dataset["categories"] if entry["split"] == split]
        metrics[split] = {
            "labels": sum(report["labels_per_category"][name] for name in names),
            "categories_without_labels": len(report["categories_without_labels"][split]),
        }
    return metrics


def check_yield(metrics: dict, min_labelled_fraction: float) -> None:
    """Check that enough pictures have a label to train on.

    Raises:
        ValueError: they have not.
    """
    found = metrics["labelled_fraction"]
    if found < min_labelled_fraction or not metrics["labels"]:
        raise ValueError(
            f"only {metrics['labelled_images']} of {metrics['images']} pictures have a pseudo-label"
            f" ({found:.1%}), fewer than params.yaml: labels.min_labelled_fraction ="
            f" {min_labelled_fraction:.1%}; data/labels/report.json names what was dropped and why:"
            " relax labels.min_area or keep_fraction, look at the stages before, or lower the limit"
        )
