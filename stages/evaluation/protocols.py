"""The open-vocabulary protocols: which classes a detector chooses from, on which images.

Generalized: it chooses from all base and novel classes, on images with any object of them.
Constrained: it chooses from the novel classes only, on images with an object of these; the others
in the image are not labelled and detections of them count as wrong. Likewise for base.
Source: the 48/17 protocol of zero-shot detection on COCO, `coco_zeroshot_val` and its companions.
Objects of neither (excluded classes) are dropped, and images that have no others with them.
"""

from dataclasses import dataclass
from typing import Literal

from stages.common.formats.categories import Category
from stages.common.formats.outlines import fill_unoutlined, ignore_unoutlined

Metric = Literal["coco", "open_images"]


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
        """Return the ids of the images it is measured on."""
        return {image["id"] for image in self.images}


def make_trials(truth: dict, categories: list[Category], metric: Metric = "coco") -> list[Trial]:
    """Return the generalized trial, then the constrained ones of base and of novel classes.

    Args:
        truth: COCO's instances format, excluded classes included.
        categories: base and novel classes in the order of the text embeddings.
        metric: by whose rules; by those of Open Images, images of which people have verified that
            a class is not in them count, too. By COCO's, whose masks are all there, objects of Open
            Images that nobody has outlined are crowds, with their filled boxes as masks: what
            detects one counts neither for nor against, as a box and as a mask.

    Raises:
        ValueError: no image has an object of any of them.
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
    """Return the trial of images that nobody has annotated: all classes, on every image."""
    indices = list(range(len(categories)))
    return Trial("generalized", (), categories, indices, truth["images"], [])


def check_truth(truth: dict, categories: list[Category], path: str) -> None:
    """Check that ground truth and classes are of one data set.

    Args:
        truth: COCO's instances format.
        categories: base, novel and excluded classes.
        path: of the ground truth, for the message.

    Raises:
        ValueError: they list other classes, or an annotation is of a class or image not listed.
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
