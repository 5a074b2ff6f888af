"""Stage `wsddn`: detections of a proposal network that is trained on image labels of all classes.

Run: python -m comparators.wsddn. A comparator of the claims. Reads the images of evaluation.split,
their proposals and data/wsddn_network; writes data/wsddn/predictions.json, in the format of
`stages.common.formats.result_files`. Masks are filled boxes, because the network learns none.
"""

from pathlib import Path

import numpy as np

from comparators.wsddn.detect import detect_classes
from comparators.wsddn.params import WsddnParams
from stages.common.formats.images import count_images, read_images
from stages.common.formats.result_files import write_results
from stages.common.formats.tables import boxes_by_image
from stages.common.geometry.boxes import xyxy_to_xywh
from stages.common.geometry.masks import encode_mask
from stages.common.runtime.devices import prepare_device
from stages.common.runtime.params import read_exactness, read_section, read_seed, read_split
from stages.common.runtime.progress import track
from stages.common.runtime.seeding import make_deterministic
from stages.common.runtime.storage import read_table
from stages.models.proposals.file import load_wspn
from stages.models.proposals.params import RankingSettings

IMAGES = Path("data/download/images")
PROPOSALS = Path("data/held_out_proposals")
MODEL = Path("data/wsddn_network/model.safetensors")
OUTPUT = Path("data/wsddn/predictions.json")


def main() -> None:
    """Run the stage."""
    params, seed, split = read_section("wsddn", WsddnParams), read_seed(), read_split()
    views = read_section("ranking", RankingSettings).views
    make_deterministic(seed, "wsddn", threads=1)
    model = load_wspn(MODEL).to(prepare_device(read_exactness()))
    images = IMAGES / f"{split}.parquet"
    searched = boxes_by_image(read_table(PROPOSALS / f"{split}.parquet"))
    image_ids, results = [], []
    for image in track(read_images(images), "wsddn", count_images(images)):
        image_ids.append(image.image_id)
        pixels = image.decode()
        proposals = searched[image.image_id]
        found = detect_classes(
            model, pixels, proposals, views, params.nms_iou, params.max_detections
        )
        for box, label, score in zip(*found, strict=True):
            mask = np.zeros(pixels.shape[:2], bool)
            left, top, right, bottom = np.rint(box).astype(int)
            mask[top:bottom, left:right] = True
            results.append(
                {
                    "image_id": image.image_id,
                    "category_id": model.config.category_ids[label],
                    "bbox": xyxy_to_xywh(box[None])[0].round(2).tolist(),
                    "score": round(float(score), 6),
                    "segmentation": encode_mask(mask),
                }
            )
    write_results(OUTPUT, split, image_ids, results)


if __name__ == "__main__":
    main()
