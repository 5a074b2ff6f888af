"""A user's own folder, with only images, captions and names."""

import csv
from pathlib import Path

import cv2
import numpy as np

from stages.download.params import ScenesParams
from stages.download.sources.scenes.source import scene_source
from tests.support.annotator import ANNOTATOR
from tests.support.images import noise_jpeg


def write_images_folder(folder: Path, num_train: int, num_test: int, side: int = 128) -> Path:
    """Write generated scenes with their captions; training images are in subfolders."""
    params = ScenesParams.model_validate(
        {
            "num_images": {"pairs": 0, "train": num_train, "val": 0, "test": num_test},
            "scene_side": side,
            "pair_side": 64,
            "captions_per_image": 2,
            "synonym_fraction": 0.1,
            "omission_fraction": 0.2,
            "jpeg_quality": 95,
            "class_split": 0,
            "annotator": ANNOTATOR,
        }
    )
    source = scene_source(params, seed=0)
    rows = []
    for split in ("train", "test"):
        for task in source.tasks[split]:
            example = source.make(task)
            name = f"{task.image_id % 2}/{example.image.file_name}"
            path = folder / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(example.image.encoded)
            rows += [(name, caption) for caption in example.captions if split == "train"]
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "caption"), *rows])
    names = [f"{c.name}: {', '.join(c.forms)}" for c in source.categories]
    (folder / "names.txt").write_text("\n".join(names) + "\n")
    return folder


def turned(encoded: bytes, orientation: int = 6) -> bytes:
    """Return a JPEG with an EXIF tag that says how to turn it."""
    tags = b"II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00"
    exif = b"Exif\x00\x00" + tags + bytes([orientation, 0, 0, 0]) + bytes(4)
    return encoded[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + encoded[2:]


def phone_jpeg(height: int = 40, width: int = 64, orientation: int = 6) -> tuple[bytes, bytes]:
    """Return a JPEG that a viewer turns, and a PNG of what the viewer shows.

    Orientations are EXIF's numbers: 6 is turned to the right.
    """
    encoded = noise_jpeg(height, width)
    stored = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    mirrored = stored[:, ::-1]
    shown = {
        1: stored,
        2: mirrored,
        3: np.rot90(stored, 2),
        4: np.rot90(mirrored, 2),
        5: np.rot90(mirrored),
        6: np.rot90(stored, -1),
        7: np.rot90(mirrored, -1),
        8: np.rot90(stored),
    }[orientation]
    return turned(encoded, orientation), cv2.imencode(".png", shown)[1].tobytes()
