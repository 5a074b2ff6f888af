"""The open-vocabulary protocols: which classes a detector chooses from, on which pictures.

Generalized: it chooses from all base and novel classes, on pictures with any object of them.
Constrained: it chooses from the novel classes only, on pictures with an object of these; the others
in the picture are not labelled and detections of them count as wrong. Likewise for base.
Source: the 48/17 protocol of zero-shot detection on COCO, `coco_zeroshot_val` and its companions.
Objects of neither (excluded classes) are dropped, and pictures that have no others with them.
"""

from dataclasses import dataclass

from stages.common.categories import Category


@dataclass(frozen=True)
class Trial:
    """One vocabulary with the part of the data set that it is measured on.

    Attributes:
        protocol: "generalized" or "constrained".
        groups: the groups of classes that it reports, of "base", "novel" and "all".
        categories: the vocabulary.
        class_indices: its rows of the text embeddings.
        images, annotations: ground truth in COCO's instances format.
    """

    protocol: str
    groups: tuple[str, ...]
    categories: list[Category]
    class_indices: list[int]
    images: list[dict]
    annotations: list[dict]

    @property
    def image_ids(self) -> set[int]:
        """Return the ids of the pictures it is measured on."""
        return {image["id"] for image in self.images}


def make_trials(truth: dict, categories: list[Category]) -> list[Trial]:
    """Return the generalized trial, then the constrained ones of base and of novel classes.

    Args:
        truth: COCO's instances format, excluded classes included.
        categories: base and novel classes in the order of the text embeddings.

    Raises:
        ValueError: no picture has an object of any of them.
    """
    trials = [_make_trial("generalized", ("base", "novel", "all"), truth, categories)]
    for group in ("base", "novel"):
        if any(category.split == group for category in categories):
            trials.append(_make_trial("constrained", (group,), truth, categories))
    if not trials[0].images:
        raise ValueError(
            "data/download/ground_truth: no picture has an object of a base or novel class;"
            " set params.yaml: evaluation.split to another split, or download more pictures"
        )
    return trials


def _make_trial(
    protocol: str, groups: tuple[str, ...], truth: dict, categories: list[Category]
) -> Trial:
    indices = [k for k, category in enumerate(categories) if in_group(category, groups)]
    chosen = {categories[k].id for k in indices}
    annotations = [a for a in truth["annotations"] if a["category_id"] in chosen]
    with_object = {annotation["image_id"] for annotation in annotations}
    images = [image for image in truth["images"] if image["id"] in with_object]
    return Trial(protocol, groups, [categories[k] for k in indices], indices, images, annotations)


def in_group(category: Category, groups: tuple[str, ...]) -> bool:
    """Return whether a base or novel category belongs to any of the groups."""
    return "all" in groups or category.split in groups


def describe_trials(truth: dict, trials: list[Trial]) -> dict:
    """Return what each trial is measured on, and what was left out."""
    generalized = trials[0]
    seen = {annotation["category_id"] for annotation in generalized.annotations}
    return {
        "images_left_out": len(truth["images"]) - len(generalized.images),
        "annotations_left_out": len(truth["annotations"]) - len(generalized.annotations),
        "categories_without_objects": [c.name for c in generalized.categories if c.id not in seen],
        "trials": [
            {
                "protocol": trial.protocol,
                "groups": list(trial.groups),
                "images": len(trial.images),
                "objects": sum(not a.get("iscrowd", 0) for a in trial.annotations),
                "crowds": sum(a.get("iscrowd", 0) for a in trial.annotations),
            }
            for trial in trials
        ],
    }
