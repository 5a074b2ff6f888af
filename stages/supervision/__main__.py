"""Stage `supervision`: the annotations of one source that the detector learns from.

Run: python -m stages.supervision <name>. `detector.supervision.sources` of params.yaml names the
source's annotation file, and the classes of which the detector may see objects. Writes
data/supervision/<name>.json with only these objects, those of novel_boxes without their masks, and
removes the files of sources that params.yaml does not name, so that the folder has exactly what the
detector learns from. DVC runs only the stages that make these annotations: without a source
`pseudo_masks`, no pseudo-masks.
"""

import argparse
from pathlib import Path
from typing import cast

from stages.common.formats.categories import Split, read_categories
from stages.common.runtime.params import read_detector_sources
from stages.common.runtime.storage import read_json, write_json

CATEGORIES = Path("data/download/categories.json")
OUTPUT = Path("data/supervision")
MASKS_DROPPED = ("novel_boxes",)  # though its annotations have masks


def keep_classes(content: dict, category_ids: set[int]) -> dict:
    """Return the content of a COCO file with only the objects of some classes."""
    kept = [own for own in content["annotations"] if own["category_id"] in category_ids]
    return content | {"annotations": kept}


def drop_masks(content: dict) -> dict:
    """Return the content of a COCO file without segmentations."""
    kept = [
        {key: value for key, value in own.items() if key != "segmentation"}
        for own in content["annotations"]
    ]
    return content | {"annotations": kept}


def _advice(name: str) -> str:
    """Return what helps if a source has nothing to learn from."""
    if name != "phrases":
        return "choose another source in params.yaml: detector.supervision"
    return (
        "are there narratives of the training images? data/phrase_labels/metrics.json counts their"
        " phrases, and why they have no box (x and y are fractions of the image, t and the"
        " utterances' times are seconds); or choose another source in params.yaml:"
        " detector.supervision"
    )


def main() -> None:
    """Write the source that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    name = parser.parse_args().name
    sources = {source["name"]: source for source in read_detector_sources()}
    if name not in sources:
        raise ValueError(
            f"params.yaml: detector.supervision.sources: has no {name}, only {', '.join(sources)}"
        )
    for path in OUTPUT.glob("*.json"):
        if path.stem not in sources:
            path.unlink()
    source = sources[name]
    classes = source["classes"]
    splits: tuple[Split, ...] = ("base", "novel")
    if classes != "all":
        splits = (cast(Split, classes),)  # read_categories refuses other values
    wanted = {category.id for category in read_categories(CATEGORIES, splits)}
    content = keep_classes(read_json(Path(source["annotations"])), wanted)
    if name in MASKS_DROPPED:
        content = drop_masks(content)
    if all(own.get("iscrowd") for own in content["annotations"]):
        raise ValueError(
            f"{source['annotations']}: no object of {classes} classes; {_advice(name)}"
        )
    write_json(OUTPUT / f"{name}.json", content, indent=None)
    print(f"supervision: {name}: {len(content['annotations'])} objects of {classes} classes")


if __name__ == "__main__":
    main()
