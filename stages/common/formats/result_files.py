"""Files of detections: COCO results together with their split and the images searched.

{"split": "test", "image_ids": [1, 2, …], "results": [{"image_id", "category_id", "bbox", …}, …]}

Splits may share image ids (the scenes of each split are numbered alike). A bare list of results
could therefore be scored on the wrong images without an error.
"""

from collections.abc import Collection, Iterable
from pathlib import Path

from stages.common.runtime.storage import read_json, write_json

KEYS = {"split", "image_ids", "results"}


def write_results(path: Path, split: str, image_ids: Iterable[int], results: list[dict]) -> None:
    """Write a file of detections.

    Args:
        path: the file.
        split: the split of the images.
        image_ids: all images that were searched, also those without detections.
        results: detections in COCO's results format.
    """
    content = {"split": split, "image_ids": sorted(image_ids), "results": results}
    write_json(path, content, indent=None)


def read_results(
    path: Path, split: str, listed: Collection[int], measured: Collection[int]
) -> list[dict]:
    """Return the detections of a file, in COCO's results format.

    Args:
        path: the file.
        split: the split that detections are wanted of.
        listed: ids of all images of that split.
        measured: ids of the images that must have been searched.

    Raises:
        ValueError: the file does not name its split and images, or they are not the wanted ones.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.keys() != KEYS:
        raise ValueError(
            f"{path}: does not say which images its detections belong to; expected"
            ' {"split": …, "image_ids": [all that were searched], "results": [COCO\'s results]}'
        )
    if content["split"] != split:
        raise ValueError(
            f"{path}: detections on split '{content['split']}', but params.yaml: evaluation.split"
            f" is '{split}'; run detection on that split, or set evaluation.split back"
        )
    searched = set(content["image_ids"])
    truth = f"data/download/ground_truth/{split}.json"
    if foreign := searched - set(listed):
        raise ValueError(
            f"{path}: detections on {len(foreign)} images that {truth} does not list, first"
            f" image_id {min(foreign)}; they come from another download, so run detection again"
        )
    if missing := set(measured) - searched:
        raise ValueError(
            f"{path}: {len(missing)} images of {truth} were not searched, first image_id"
            f" {min(missing)}; they would count as misses, so run detection again"
        )
    if stray := {result["image_id"] for result in content["results"]} - searched:
        raise ValueError(
            f"{path}: results of image_id {min(stray)}, which is not among its image_ids"
        )
    return content["results"]
