"""Stage `pseudo_boxes`: choose the best WSPN proposal of each named object of a shard."""

from pathlib import Path

import numpy as np

from stages.common.formats.coco import read_image_list
from stages.common.formats.tables import boxes_by_image, boxes_table
from stages.common.geometry.activation_maps import smooth_maps
from stages.common.geometry.boxes import clip_boxes
from stages.common.runtime.params import read_section, shard_argument
from stages.common.runtime.progress import track
from stages.common.runtime.storage import read_table, read_tensors, write_table
from stages.pseudo_boxes.params import PseudoBoxesParams
from stages.pseudo_boxes.select import binarise_otsu, choose_boxes

IMAGES = Path("data/download/images/train")
RANKING = Path("data/ranking")
ACTIVATION = Path("data/activation")
OUTPUT = Path("data/pseudo_boxes")


def main(shard: str) -> None:
    """Run the stage for one shard."""
    params = read_section("pseudo_boxes", PseudoBoxesParams)
    found, _ = read_tensors(ACTIVATION / f"{shard}.safetensors")
    entries = read_image_list(IMAGES / f"{shard}.parquet")
    sizes = {entry["id"]: (entry["height"], entry["width"]) for entry in entries}
    proposals = boxes_by_image(read_table(RANKING / f"{shard}.parquet"))
    image_ids = found["image_id"].numpy()
    cells = found["maps"][:, -1 if params.activation_round == "last" else 0].float().numpy()

    boxes = np.zeros((len(image_ids), 4), np.float32)
    scores = np.zeros(len(image_ids), np.float32)
    for image_id in track(np.unique(image_ids).tolist(), "pseudo_boxes"):
        if image_id not in proposals:
            raise ValueError(
                f"{RANKING / shard}.parquet has no proposal for image {image_id}; rerun `ranking`"
            )
        rows = np.flatnonzero(image_ids == image_id)
        candidates = clip_boxes(proposals[image_id][: params.top_k], sizes[image_id])
        maps = smooth_maps(cells[rows], sizes[image_id], params.smoothing)
        if params.binarise == "otsu":
            maps = binarise_otsu(maps, sizes[image_id])
        best, scores[rows] = choose_boxes(maps, candidates, sizes[image_id], params.area_power)
        boxes[rows] = candidates[best]
    write_table(
        OUTPUT / f"{shard}.parquet",
        boxes_table(image_ids, boxes, category_id=found["category_id"].numpy(), score=scores),
    )


if __name__ == "__main__":
    main(shard_argument())
