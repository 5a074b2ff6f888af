"""Stage `true_masks`: pseudo-labels with the best masks that their boxes allow, for claim e.

Run: python -m comparators.true_masks. With `--boxes`, labels also get the boxes of their objects.
Reads ground truth. Detectors trained on these labels are compared with the experiment's detector
and the oracle: this shows how much AP is lost to the masks, to the boxes, and to missing and wrong
labels.
"""

import argparse
from pathlib import Path

from comparators.true_masks.replace import replace_masks, replace_objects
from stages.common.formats.coco import group_by_image
from stages.common.runtime.storage import read_json, write_json

LABELS = Path("data/pseudo_labels/pseudo_annotations.json")
TRUTH = Path("data/download/ground_truth/train.json")


def main() -> None:
    """Run the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--boxes", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("data/true_masks"))
    options = parser.parse_args()
    labels, truth = read_json(LABELS), group_by_image(read_json(TRUTH)["annotations"])
    sizes = {image["id"]: (image["height"], image["width"]) for image in labels["images"]}
    replace = replace_objects if options.boxes else replace_masks
    replaced = [
        annotation
        for image_id, own in group_by_image(labels["annotations"]).items()
        for annotation in replace(own, truth.get(image_id, []), sizes[image_id])
    ]
    write_json(
        options.output / "annotations.json", {**labels, "annotations": replaced}, indent=None
    )


if __name__ == "__main__":
    main()
