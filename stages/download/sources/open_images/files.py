"""Names and addresses of Open Images' files, as published.

The files are in one flat folder, except the images: each official part has a folder of them.
Source: storage.googleapis.com/openimages/web/download_v7.html, challenge2019_downloads.html, and
google.github.io/localized-narratives.
"""

from typing import Literal

Table = Literal["images", "boxes", "masks", "labels"]

PARTS = ("train", "validation", "test")
STORAGE = "https://storage.googleapis.com/openimages"
NARRATIVES = "https://storage.googleapis.com/localized-narratives/annotations"
IMAGES = "https://open-images-dataset.s3.amazonaws.com"
CLASSES = "challenge-2019-classes-description-segmentable.csv"
HIERARCHY = "challenge-2019-label300-segmentable-hierarchy.json"
NARRATIVE_FILES = 10  # number of files with narratives of train
MASK_DIGITS = "0123456789abcdef"

# Version folder and name of each table; later versions of Open Images refer to the earlier files.
_TABLES: dict[Table, dict[str, str]] = {
    "images": {
        "train": "2018_04/train/train-images-boxable-with-rotation.csv",
        "validation": "2018_04/validation/validation-images-with-rotation.csv",
        "test": "2018_04/test/test-images-with-rotation.csv",
    },
    "boxes": {
        "train": "v6/oidv6-train-annotations-bbox.csv",
        "validation": "v5/validation-annotations-bbox.csv",
        "test": "v5/test-annotations-bbox.csv",
    },
    "masks": {part: f"v5/{part}-annotations-object-segmentation.csv" for part in PARTS},
    "labels": {part: f"v5/{part}-annotations-human-imagelabels-boxable.csv" for part in PARTS},
}


def table(kind: Table, part: str) -> str:
    """Return the file name of a table."""
    return _TABLES[kind][part].rpartition("/")[2]


def outlines(part: str, digit: str) -> str:
    """Return the file name of the archive of outlines whose names begin with `digit`."""
    return f"{part}-masks-{digit}.zip"


def narratives(part: str) -> list[str]:
    """Return the file names of a part's Localized Narratives."""
    if part != "train":
        return [f"open_images_{part}_localized_narratives.jsonl"]
    return [
        f"open_images_train_v6_localized_narratives-{number:05d}-of-{NARRATIVE_FILES:05d}.jsonl"
        for number in range(NARRATIVE_FILES)
    ]


def official_urls(test_part: str) -> dict[str, str]:
    """Return file name → address, for all files except the images."""
    parts = ("train", test_part)
    paths = [f"challenge_2019/{name}" for name in (CLASSES, HIERARCHY)]
    paths += [tables[part] for tables in _TABLES.values() for part in parts]
    paths += [f"v5/{part}-masks/{outlines(part, digit)}" for part in parts for digit in MASK_DIGITS]
    urls = [f"{STORAGE}/{path}" for path in paths]
    urls += [f"{NARRATIVES}/{name}" for name in narratives("train")]
    return {url.rpartition("/")[2]: url for url in urls}
