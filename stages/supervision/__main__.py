"""Stage `supervision`: one source of what the detector learns from, with its classes alone.

Run: python -m stages.supervision <name>. `detector.supervision.sources` of params.yaml says which
annotations the source has, and objects of which classes the detector may see. Writes
data/supervision/<name>.json and removes what is there of sources that params.yaml does not name, so
that the folder is all that the detector learns from. DVC runs only the stages that these
annotations come from: where nothing is learned from pseudo-masks, nobody makes them.
"""

import argparse
from pathlib import Path
from typing import cast

from stages.common.formats.categories import Split, read_categories
from stages.common.runtime.params import read_detector_sources
from stages.common.runtime.storage import read_json, write_json

CATEGORIES = Path("data/download/categories.json")
OUTPUT = Path("data/supervision")


def keep_classes(content: dict, category_ids: set[int]) -> dict:
    """Return a file in COCO's form with the objects of some classes."""
    kept = [own for own in content["annotations"] if own["category_id"] in category_ids]
    return content | {"annotations": kept}


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
        splits = (cast(Split, classes),)  # read_categories refuses others
    wanted = {category.id for category in read_categories(CATEGORIES, splits)}
    content = keep_classes(read_json(Path(source["annotations"])), wanted)
    write_json(OUTPUT / f"{name}.json", content, indent=None)
    print(f"supervision: {name}: {len(content['annotations'])} objects of {classes} classes")


if __name__ == "__main__":
    main()
