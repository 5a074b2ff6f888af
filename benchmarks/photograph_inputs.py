"""Writes the inputs of `pseudo_boxes` and `pseudo_masks` for generated photographs of any size.

Run: python -m benchmarks.photograph_inputs <folder> <count> <factor>. It is a process of its own,
because a child's peak memory starts at that of its parent.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks import inputs
from stages.common.formats.images import EncodedImage, write_images
from stages.common.formats.tables import boxes_table
from stages.common.runtime.storage import write_table, write_tensors

OBJECTS, PROPOSALS, CELLS = 2, 50, (16, 16)  # OBJECTS and PROPOSALS per photograph


def make_data(root: Path, count: int, factor: int) -> None:
    """Write both stages' inputs for `count` photographs of `factor` times 640 × 480 pixels."""
    image_ids = np.arange(1, count + 1)
    maps = torch.from_numpy(inputs.maps(OBJECTS, CELLS))[:, None].half()
    write_tensors(
        root / "data/activation/0.safetensors",
        {
            "image_id": torch.from_numpy(image_ids.repeat(OBJECTS)),
            "category_id": torch.arange(1, OBJECTS + 1).repeat(count),
            "maps": maps.repeat(count, 1, 1, 1),
        },
    )
    (small,) = inputs.images(1)
    large = cv2.resize(small.decode(), None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    encoded = cv2.imencode(".jpg", large[..., ::-1])[1].tobytes()
    write_images(
        root / "data/download/images/train/0.parquet",
        (EncodedImage(int(k), f"{k}.jpg", *large.shape[:2], encoded) for k in image_ids),
    )
    boxes = np.tile(inputs.boxes(PROPOSALS) * factor, (count, 1)).astype(np.float32)
    scores = np.tile(np.linspace(1, 0, PROPOSALS, dtype=np.float32), count)
    table_of_boxes = boxes_table(image_ids.repeat(PROPOSALS), boxes, score=scores)
    write_table(root / "data/ranking/0.parquet", table_of_boxes)


if __name__ == "__main__":
    make_data(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
