"""Stage `pseudo_masks`: segment the object in every pseudo-box of a shard."""

from pathlib import Path

import numpy as np

from stages.common.formats.images import read_images
from stages.common.formats.tables import table_boxes
from stages.common.geometry.activation_maps import smooth_maps
from stages.common.geometry.boxes import xyxy_to_xywh
from stages.common.geometry.masks import encode_window
from stages.common.runtime.devices import prepare_device
from stages.common.runtime.params import (
    read_exactness,
    read_section,
    read_seed,
    shard_argument,
)
from stages.common.runtime.progress import track
from stages.common.runtime.seeding import make_deterministic, torch_generator
from stages.common.runtime.storage import read_table, read_tensors, write_json
from stages.pseudo_masks.params import PseudoMasksParams
from stages.pseudo_masks.segment import Crops, join_crops, make_crops, paste_mask, segment_crops

IMAGES = Path("data/download/images/train")
ACTIVATION = Path("data/activation")
BOXES = Path("data/pseudo_boxes")
OUTPUT = Path("data/pseudo_masks")


def main(shard: str) -> None:
    """Run the stage for one shard."""
    params, seed = read_section("pseudo_masks", PseudoMasksParams), read_seed()
    make_deterministic(seed, "masks", threads=1)
    device = prepare_device(read_exactness())
    table = read_table(BOXES / f"{shard}.parquet")
    found, _ = read_tensors(ACTIVATION / f"{shard}.safetensors")
    cells = found["maps"][:, -1 if params.activation_round == "last" else 0].float().numpy()
    image_ids, boxes = table["image_id"].to_numpy(), table_boxes(table)
    category_ids, scores = table["category_id"].to_pylist(), table["score"].to_pylist()
    if not np.array_equal(image_ids, found["image_id"].numpy()):
        raise ValueError(
            f"{BOXES} and {ACTIVATION} of shard {shard} differ; rerun stage `pseudo_boxes`"
        )

    results: list[dict] = []
    waiting: list[tuple[np.ndarray, tuple[int, int], Crops]] = []

    def finish() -> None:
        crops = join_crops([crops for _, _, crops in waiting]).to(device)
        logits = segment_crops(crops, params, torch_generator(seed, "masks"))
        rows = np.concatenate([rows for rows, _, _ in waiting])
        sizes = [image_hw for rows, image_hw, _ in waiting for _ in rows]
        for row, image_hw, logit in zip(rows, sizes, logits, strict=True):
            mask, corner_xy = paste_mask(
                logit, boxes[row], image_hw, params.context, params.largest_component
            )
            results.append(
                {
                    "image_id": int(image_ids[row]),
                    "category_id": category_ids[row],
                    "bbox": xyxy_to_xywh(boxes[row : row + 1])[0].tolist(),
                    "score": round(scores[row], 6),
                    "area": int(mask.sum()),
                    "segmentation": encode_window(mask, corner_xy, image_hw),
                    "iscrowd": 0,
                }
            )
        waiting.clear()

    wanted = set(image_ids.tolist())  # other images have no target; stage `activation` counts them
    images = (
        image for image in read_images(IMAGES / f"{shard}.parquet") if image.image_id in wanted
    )
    for image in track(images, "pseudo_masks", len(wanted)):
        rows = np.flatnonzero(image_ids == image.image_id)
        pixels = image.decode()
        maps = smooth_maps(cells[rows], pixels.shape[:2], params.smoothing)
        waiting.append((rows, pixels.shape[:2], make_crops(pixels, maps, boxes[rows], params)))
        if sum(len(rows) for rows, _, _ in waiting) >= params.batch_size:
            finish()
    if waiting:
        finish()
    write_json(OUTPUT / f"{shard}.json", results, indent=None)


if __name__ == "__main__":
    main(shard_argument())
