"""The montage: ground truth and each detector's predictions side by side."""

from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
from jaxtyping import UInt8

from stages.common.drawing.montage import Row, draw_sheet
from stages.common.drawing.panels import show_instances
from stages.common.formats.categories import Category
from stages.common.formats.coco import group_by_image
from stages.evaluation.protocols import Trial

SIDE = 320  # of a panel, pixels
WORDS_WIDTH = 144  # of the text column, pixels
NOVEL_MARK = "★"


@dataclass(frozen=True)
class ShownImage:
    """An image RGB uint8 (H, W, 3), its objects, and the results of each detector by name."""

    image: np.ndarray
    file_name: str
    objects: list[dict]
    results: dict[str, list[dict]]


def choose_images(trial: Trial, number: int, random: np.random.Generator) -> list[int]:
    """Return the ids of at most `number` random images with a novel object, or else of any."""
    novel = {category.id for category in trial.categories if category.split == "novel"}
    with_novel = {a["image_id"] for a in trial.annotations if a["category_id"] in novel}
    candidates = sorted(with_novel or trial.image_ids)
    return random.permutation(candidates)[:number].tolist()


def make_examples(
    images: dict[int, tuple[str, UInt8[np.ndarray, "_ _ 3"]]],
    trial: Trial,
    detections: dict[str, list[dict]],
    min_score: float,
) -> list[ShownImage]:
    """Join images (image id → file name, RGB), objects and predictions to show."""
    truth = group_by_image(trial.annotations)
    by_model = {
        model: group_by_image(result for result in results if result["score"] >= min_score)
        for model, results in detections.items()
    }
    return [
        ShownImage(
            image,
            file_name,
            [a for a in truth.get(image_id, []) if not a.get("iscrowd", 0)],
            {model: found.get(image_id, []) for model, found in by_model.items()},
        )
        for image_id, (file_name, image) in images.items()
    ]


def draw_montage(
    examples: list[ShownImage], categories: list[Category], min_score: float, annotated: bool = True
) -> UInt8[np.ndarray, "H W 3"]:
    """Return the sheet, RGB, one row per image.

    Without `annotated` there is no column of ground truth.
    """
    drawn = "Drawn blindly from the images with a novel object. Generalized protocol, scores of"
    if not annotated:
        drawn = "Drawn blindly; there is no ground truth to compare them with. Scores of"
    return draw_sheet(
        "Predictions on held-out images",
        f"{drawn} {min_score:.2f} and more. {NOVEL_MARK} novel class.",
        [*(["ground truth"] if annotated else []), *examples[0].results],
        [_row(example, categories, annotated) for example in examples],
        WORDS_WIDTH,
    )


def _row(example: ShownImage, categories: list[Category], annotated: bool) -> Row:
    novel = {category.id for category in categories if category.split == "novel"}
    names = {c.id: f"{NOVEL_MARK} {c.name}" if c.id in novel else c.name for c in categories}
    shown = list(example.results.values())
    words = [" ".join(f"{len(found)} by {name}" for name, found in example.results.items())]
    if annotated:
        shown.insert(0, example.objects)
        num_novel = sum(instance["category_id"] in novel for instance in example.objects)
        words = [f"{len(example.objects)} objects, {num_novel} of novel classes"]
    panels = [show_instances(example.image, instances, names, SIDE) for instances in shown]
    return Row(panels, _short(PurePath(example.file_name).stem), lines=words)


def _short(stem: str) -> str:
    return stem if len(stem) <= 12 else f"…{stem[-11:]}"
