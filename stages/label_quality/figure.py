"""The montage: image, activation after each round, pseudo-label and ground truth, row by row."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from stages.common.drawing.montage import Row, draw_sheet
from stages.common.drawing.panels import (
    Colour,
    Panel,
    Tag,
    paint_box,
    paint_mask,
    panel_box,
    show_heat,
    show_image,
)
from stages.common.formats.captions import MentionFinder
from stages.common.formats.categories import Category
from stages.common.formats.coco import Instances, best_box_iou, best_mask_iou
from stages.common.geometry.masks import decode_mask

SIDE = 208  # of a panel, pixels
WORDS_WIDTH = 218  # of the text column, pixels
LABEL_COLOUR, TRUTH_COLOUR = (255, 196, 0), (0, 200, 150)


@dataclass(frozen=True)
class ShownLabel:
    """One pseudo-label with the inputs that it was made from.

    Attributes:
        image: RGB uint8 (H, W, 3).
        category: the label's class.
        captions: all captions of the image.
        maps: activation after each round, (G + 1, h, w) in [0, 1].
        label: the pseudo-label, one instance.
        truth: the objects of its class, without crowds.
    """

    image: np.ndarray
    category: Category
    captions: list[str]
    maps: np.ndarray
    label: Instances
    truth: Instances


def choose_labels(
    annotations: list[dict], categories: list[Category], number: int, random: np.random.Generator
) -> list[dict]:
    """Return `number` random labels, alternating base and novel, and alternating their classes.

    The draw ignores the labels' quality, so the montage is a fair sample.
    """
    splits = {category.id: category.split for category in categories}
    shuffled = [annotations[index] for index in random.permutation(len(annotations))]
    seen_class: dict[int, int] = {}
    turns = []
    for place, annotation in enumerate(shuffled):
        category_id = annotation["category_id"]
        seen_class[category_id] = seen_class.get(category_id, 0) + 1
        turns.append((seen_class[category_id], place, annotation))
    queues: dict[str, list[dict]] = {"base": [], "novel": []}
    for _, _, annotation in sorted(turns, key=lambda turn: turn[:2]):
        queues[splits[annotation["category_id"]]].append(annotation)
    numbered = [(turn, a) for queue in queues.values() for turn, a in enumerate(queue)]
    numbered.sort(key=lambda entry: entry[0])
    return [annotation for _, annotation in numbered[:number]]


def draw_montage(
    examples: list[ShownLabel], categories: list[Category], annotated: bool = True
) -> UInt8[np.ndarray, "H W 3"]:
    """Return the sheet, RGB, with one row per example and one column per round.

    Without annotations (`annotated` is false) the column of ground truth is left out.
    """
    rounds = [f"activation, G = {k}" for k in range(len(examples[0].maps))]
    comparison = "The ground truth is shown for comparison and was never used."
    return draw_sheet(
        "Pseudo-labels from captions",
        "Drawn blindly from the training images, base and novel classes in turn. "
        + (comparison if annotated else "There is no ground truth to compare them with."),
        ["image", *rounds, "pseudo-label", *(["ground truth"] if annotated else [])],
        [_row(example, MentionFinder(categories), annotated) for example in examples],
        WORDS_WIDTH,
    )


def _row(example: ShownLabel, finder: MentionFinder, annotated: bool) -> Row:
    naming = [c for c in example.captions if example.category.id in finder.classes([c])]
    panels = [
        Panel(show_image(example.image, SIDE)),
        *(Panel(show_heat(example.image, heat, SIDE)) for heat in example.maps),
        _instances(example, example.label, LABEL_COLOUR),
    ]
    lines = [f"“{caption}”" for caption in naming[:2]]
    if annotated:
        panels.append(_instances(example, example.truth, TRUTH_COLOUR))
        lines.append(_agreement(example))
    return Row(panels, example.category.name, example.category.split, lines)


def _agreement(example: ShownLabel) -> str:
    if not len(example.truth):
        return "no object of this class in the image"
    box_iou = best_box_iou(example.label, example.truth)[0]
    mask_iou = best_mask_iou(example.label, example.truth)[0]
    return f"IoU: box {box_iou:.2f}, mask {mask_iou:.2f}"


def _instances(example: ShownLabel, instances: Instances, colour: Colour) -> Panel:
    """Return the image with masks, boxes and the class name painted on it."""
    image_hw = example.image.shape[:2]
    pixels, tags = show_image(example.image, SIDE), []
    for segmentation in instances.segmentations:
        pixels = paint_mask(pixels, decode_mask(segmentation, image_hw), colour)
    for box_xyxy in instances.boxes_xyxy:
        paint_box(pixels, box_xyxy, image_hw, colour)
        x, y, *_ = panel_box(box_xyxy, image_hw, SIDE)
        tags.append(Tag(example.category.name, x, y, colour))
    return Panel(pixels, tags)
