"""Are fast masks as good as slow ones? `python -m benchmarks.mask_quality` after `make repro`.

Takes pseudo-boxes and activation maps of the default experiment, makes each object's mask again
with the official code's network (tests/reference/masks.py: 400 steps of a 128-channel network), and
compares both masks with the ground truth by the mean IoU with the best matching object of the
class.
"""

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.measure import table
from stages.common.formats.coco import group_by_image
from stages.common.formats.images import normalise_pixels, read_images
from stages.common.formats.tables import table_boxes
from stages.common.geometry.activation_maps import enlarge_maps, smooth_maps
from stages.common.geometry.masks import decode_mask, mask_iou
from stages.common.runtime.seeding import derive_seed, numpy_generator
from stages.common.runtime.storage import read_json, read_table, read_tensors
from stages.pseudo_boxes.select import binarise_otsu
from tests.reference.masks import seed_labels, segment_crop

DATA = Path("data")
SEEDS_FRACTION = 0.1  # of the box's pixels: Z of the official code's random object seeds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mask_quality", description=__doc__)
    parser.add_argument("--objects", type=int, default=60, help="drawn at random from one shard")
    parser.add_argument("--shard", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400, help="at most, of the official network")
    options = parser.parse_args()
    table_of_boxes = read_table(DATA / f"pseudo_boxes/{options.shard}.parquet")
    image_ids, boxes = table_of_boxes["image_id"].to_numpy(), table_boxes(table_of_boxes)
    classes = table_of_boxes["category_id"].to_pylist()
    cells = read_tensors(DATA / f"activation/{options.shard}.safetensors")[0]["maps"][:, -1].float()
    made = read_json(DATA / f"pseudo_masks/{options.shard}.json")
    masks = {(mask["image_id"], mask["category_id"]): mask["segmentation"] for mask in made}
    truth = group_by_image(read_json(DATA / "download/ground_truth/train.json")["annotations"])
    chosen = set(
        numpy_generator(0, "mask quality").permutation(len(boxes))[: options.objects].tolist()
    )

    ours, plain, seconds = [], [], 0.0
    for image in read_images(DATA / f"download/images/train/{options.shard}.parquet"):
        rows = [r for r in np.flatnonzero(image_ids == image.image_id).tolist() if r in chosen]
        pixels = image.decode() if rows else None
        for row in rows:
            objects = [
                decode_mask(annotation["segmentation"], pixels.shape[:2])
                for annotation in truth.get(image.image_id, [])
                if annotation["category_id"] == classes[row]
            ]
            if not objects:
                continue  # the caption names a class that is not in the image
            started = time.perf_counter()
            mask = official_mask(pixels, cells[row].numpy(), boxes[row], row, options.steps)
            seconds += time.perf_counter() - started
            fast = decode_mask(masks[image.image_id, classes[row]], pixels.shape[:2])
            ours.append(max(mask_iou(fast, one) for one in objects))
            plain.append(max(mask_iou(mask, one) for one in objects))
    rows_of_table = [
        {"masks of": "stage `pseudo_masks`", "mean IoU": f"{np.mean(ours):.3f}"},
        {"masks of": "the official network", "mean IoU": f"{np.mean(plain):.3f}"},
    ]
    print(table(f"{len(ours)} objects of the default experiment", rows_of_table))
    print(f"\nThe official network took {seconds / max(len(ours), 1):.1f} s an object.")


def official_mask(
    image: np.ndarray, cells: np.ndarray, box_xyxy: np.ndarray, item: int, steps: int
) -> np.ndarray:
    """Return the mask bool (H, W) of one object by the official network on its full-size crop.

    Args:
        image: RGB uint8 (H, W, 3).
        cells: activation of the object, float32 (h, w).
        box_xyxy: its pseudo-box.
        item: the seeds and initial weights depend on it.
        steps: the most steps.
    """
    mask = np.zeros(image.shape[:2], bool)
    left, top, right, bottom = np.rint(box_xyxy).astype(int).clip(0)
    window = np.s_[top:bottom, left:right]
    if min(image[window].shape[:2]) < 3:
        return mask
    maps = enlarge_maps(smooth_maps(cells[None], image.shape[:2], 0.0), image.shape[:2])
    level = cv2.GaussianBlur(maps[0], (5, 5), 0)
    active = binarise_otsu(level[None], image.shape[:2])[0][window] > 0
    generator = numpy_generator(0, "official mask", item)
    labels = seed_labels(active, max(1, round(SEEDS_FRACTION * active.size)), generator)
    torch.manual_seed(derive_seed(0, "official mask", item))
    mask[window], _ = segment_crop(normalise_pixels(image[window][None])[0], labels, steps)
    return mask


if __name__ == "__main__":
    main()
