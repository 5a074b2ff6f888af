"""The open-vocabulary protocols: which classes a detector chooses from, on which images.

Generalized: the detector chooses from all base and novel classes, on images with an object of any.
Constrained: it chooses from the novel classes only, on images with a novel object. Base objects in
these images are not labelled, so detections on them count as wrong. Likewise for base classes.
Objects of excluded classes are dropped, and so are images with no other objects.
Source: the 48/17 protocol of zero-shot detection on COCO, `coco_zeroshot_val` and its companions.
"""

from dataclasses import dataclass
from typing import Literal

from stages.common.formats.categories import Category
from stages.common.formats.outlines import fill_unoutlined, ignore_unoutlined

Metric = Literal["coco", "open_images"]


@dataclass(frozen=True)
class Trial:
    """A vocabulary, and the images and objects that it is measured on.

    Attributes:
        protocol: "generalized" or "constrained".
        groups: the groups of classes to report, of "base", "novel" and "all".
        categories: the vocabulary.
        class_indices: rows of the text embeddings, one per category.
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
        """Return the ids of the trial's images."""
        return {image["id"] for image in self.images}


def make_trials(truth: dict, categories: list[Category], metric: Metric = "coco") -> list[Trial]:
    """Return the generalized trial, then the constrained ones of base and of novel classes.

    Args:
        truth: in COCO's instances format, with excluded classes.
        categories: base and novel classes in the order of the text embeddings.
        metric: whose rules count. By those of Open Images, images in which people have verified
            that a class is absent count too. COCO's rules require masks, so objects of Open Images
            without an outline become crowds with their filled boxes as masks: their detections are
            neither right nor wrong, as boxes and as masks.

    Raises:
        ValueError: no image has an object of a base or novel class.
    """
    verified = metric == "open_images"
    if not verified and any("verified_category_ids" in image for image in truth["images"]):
        truth = truth | {"annotations": fill_unoutlined(ignore_unoutlined(truth["annotations"]))}
    trials = [_make_trial("generalized", ("base", "novel", "all"), truth, categories, verified)]
    for group in ("base", "novel"):
        if any(category.split == group for category in categories):
            trials.append(_make_trial("constrained", (group,), truth, categories, verified))
    if not trials[0].images:
        raise ValueError(
            "data/download/ground_truth: no image has an object of a base or novel class;"
            " set params.yaml: evaluation.split to another split (val is empty unless val_fraction"
            " of download's source is above 0), or download more images"
        )
    return trials


def unannotated_trial(truth: dict, categories: list[Category]) -> Trial:
    """Return a trial without ground truth: all classes, on every image."""
    indices = list(range(len(categories)))
    return Trial("generalized", (), categories, indices, truth["images"], [])


def check_truth(truth: dict, categories: list[Category], path: str) -> None:
    """Check that the ground truth and the classes belong to the same data set.

    Args:
        truth: in COCO's instances format.
        categories: base, novel and excluded classes.
        path: of the ground truth, for the error message.

    Raises:
        ValueError: the lists of classes differ, or an annotation's class or image is not listed.
    """
    told = {c["id"]: (c["name"], c["split"]) for c in truth["categories"]}
    listed = {c.id: (c.name, c.split) for c in categories}
    mend = "run `dvc repro download` to bring both to the same state"
    if different := sorted(k for k in told.keys() | listed.keys() if told.get(k) != listed.get(k)):
        first = different[0]
        raise ValueError(
            f"{path}: category {first} is {told.get(first)} there and {listed.get(first)} in"
            f" data/download/categories.json; {mend}"
        )
    image_ids = {image["id"] for image in truth["images"]}
    for key, known in (("category_id", listed), ("image_id", image_ids)):
        if unknown := sorted({a[key] for a in truth["annotations"]} - set(known)):
            raise ValueError(f"{path}: annotations of the unlisted {key} {unknown[:5]}; {mend}")


def _make_trial(
    protocol: str,
    groups: tuple[str, ...],
    truth: dict,
    categories: list[Category],
    verified: bool,
) -> Trial:
    indices = [k for k, category in enumerate(categories) if in_group(category, groups)]
    chosen = {categories[k].id for k in indices}
    annotations = [a for a in truth["annotations"] if a["category_id"] in chosen]
    wanted = {annotation["image_id"] for annotation in annotations}
    if verified:
        known = ((i["id"], i.get("verified_category_ids", ())) for i in truth["images"])
        wanted |= {image_id for image_id, classes in known if chosen.intersection(classes)}
    images = [image for image in truth["images"] if image["id"] in wanted]
    return Trial(protocol, groups, [categories[k] for k in indices], indices, images, annotations)


def in_group(category: Category, groups: tuple[str, ...]) -> bool:
    """Return whether a base or novel category belongs to any of the groups."""
    return "all" in groups or category.split in groups


def describe_trials(truth: dict, trials: list[Trial]) -> dict:
    """Return the numbers of images and objects of each trial, and of those left out."""
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
