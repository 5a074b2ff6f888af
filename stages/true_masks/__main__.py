"""Stage `true_masks`: what if every pseudo-mask were as good as its box allows? For claim e.

Reads ground truth. What is lost to the masks, and what to boxes and missed objects, is told by a
detector that learns from these labels beside the experiment's own and the oracle.
"""

from pathlib import Path

from stages.common.coco import group_by_image
from stages.common.storage import read_json, write_json
from stages.true_masks.replace import replace_masks

LABELS = Path("data/labels/pseudo_annotations.json")
TRUTH = Path("data/download/ground_truth/train.json")
OUTPUT = Path("data/true_masks/annotations.json")


def main() -> None:
    """Run the stage."""
    labels, truth = read_json(LABELS), group_by_image(read_json(TRUTH)["annotations"])
    sizes = {image["id"]: (image["height"], image["width"]) for image in labels["images"]}
    replaced = [
        annotation
        for image_id, own in group_by_image(labels["annotations"]).items()
        for annotation in replace_masks(own, truth.get(image_id, []), sizes[image_id])
    ]
    write_json(OUTPUT, {**labels, "annotations": replaced}, indent=None)


if __name__ == "__main__":
    main()
