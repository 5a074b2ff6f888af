"""A panel of one picture: its instances' masks in the colours of their classes, with words."""

from collections.abc import Mapping, Sequence

import numpy as np

from stages.common.drawing.panels import Panel, Tag, class_colour, paint_mask, panel_box, show_image
from stages.common.geometry.masks import decode_mask


def show_instances(
    image: np.ndarray, instances: Sequence[dict], words: Mapping[int, str], side: int
) -> Panel:
    """Return the panel of an RGB uint8 picture (H, W, 3), the first instances on top.

    Args:
        image: the picture.
        instances: COCO annotations or results of it, best first; a score is set beside the word.
        words: what each category id is called; its place in the order is the class's colour.
        side: of the panel, pixels.
    """
    image_hw, places = image.shape[:2], {key: place for place, key in enumerate(words)}
    pixels, tags = show_image(image, side), []
    for instance in reversed(instances):
        colour = class_colour(places[instance["category_id"]])
        pixels = paint_mask(pixels, decode_mask(instance["segmentation"], image_hw), colour)
    for instance in instances:
        key = instance["category_id"]
        certainty = f" {instance['score']:.2f}" if "score" in instance else ""
        x, y, *_ = panel_box([*instance["bbox"][:2], 0, 0], image_hw, side)
        tags.append(Tag(f"{words[key]}{certainty}", x, y, class_colour(places[key])))
    return Panel(pixels, tags)
