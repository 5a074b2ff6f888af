"""Stage `rpn`: proposal recall of WSPN against a region proposal network trained on base boxes.

Run: python -m comparators.rpn. A comparator of the claims, outside the pseudo-label pipeline. It
reads ground truth of base classes to train the detector, and of base and novel classes on the
images of evaluation.split to measure recall. Novel objects are unlabelled in training, as in the
papers that use such an RPN. Writes data/rpn/metrics.json and curve.csv.
"""

from pathlib import Path

import torch

from comparators.rpn.compare import (
    classes_won,
    find_objects,
    image_objects,
    ordered_boxes,
    recall_table,
)
from comparators.rpn.params import RpnParams
from stages.common.formats.categories import read_categories
from stages.common.formats.images import count_images, read_images
from stages.common.formats.stored_images import StoredImages
from stages.common.formats.tables import boxes_by_image
from stages.common.runtime.curves import Curve
from stages.common.runtime.devices import prepare_device
from stages.common.runtime.params import (
    read_exactness,
    read_section,
    read_seed,
    read_shards,
    read_split,
)
from stages.common.runtime.progress import track
from stages.common.runtime.seeding import make_deterministic
from stages.common.runtime.storage import read_json, read_table, write_json
from stages.models.detection.detector import build
from stages.models.detection.initial_weights import load_start
from stages.models.detection.samples import label_images, read_annotations
from stages.models.detection.supervision import Supervision
from stages.models.detection.training import train_detector
from stages.models.proposals.file import load_wspn
from stages.models.proposals.params import RankingSettings

DOWNLOAD = Path("data/download")
PROPOSALS = Path("data/held_out_proposals")
OUTPUT = Path("data/rpn")


def main() -> None:
    """Run the stage."""
    params, seed, split = read_section("rpn", RpnParams), read_seed(), read_split()
    ranking = read_section("ranking", RankingSettings)
    make_deterministic(seed, "rpn")
    device = prepare_device(read_exactness())
    categories = read_categories(DOWNLOAD / "categories.json", ("base", "novel", "excluded"))
    base = [category.id for category in categories if category.split == "base"]
    labels = {category_id: k + 1 for k, category_id in enumerate(base)}
    truth = DOWNLOAD / "ground_truth/train.json"
    annotations = read_annotations(truth, labels, [category.id for category in categories])
    shards = [DOWNLOAD / f"images/train/{shard}.parquet" for shard in read_shards()]
    labelled = label_images(StoredImages(*shards), annotations, labels, truth)

    # One-hot embeddings of the base classes: only the region proposals matter here.
    detector = build(params.architecture, params.network, torch.eye(len(base)))
    load_start(detector, params, Path("data/vlm/model.safetensors"), "rpn")
    detector.to(device)
    curve = Curve(every=20, growing=OUTPUT / "curve.csv")
    train_detector(detector, Supervision.of(labelled), params.training, seed, curve, section="rpn")
    wspn = load_wspn(Path("data/wspn/model.safetensors")).to(device)
    held_out = DOWNLOAD / f"images/{split}.parquet"
    searched = boxes_by_image(read_table(PROPOSALS / f"{split}.parquet"))
    rankings = {  # our ranking, the paper's, and the paper's with a step of ours
        "wspn": ranking,
        "wspn_by_classes": params.by_classes.apply_to(ranking),
        "wspn_by_agreement": params.by_agreement.apply_to(ranking),
    }
    found = [
        ordered_boxes(
            image, searched[image.image_id], detector, wspn, rankings, params.inference, seed
        )
        for image in track(read_images(held_out), "rpn recall", count_images(held_out))
    ]
    entries = read_json(DOWNLOAD / f"ground_truth/{split}.json")["annotations"]
    groups = {
        group: {category.id for category in categories if category.split == group}
        for group in ("base", "novel")
    }
    hits = find_objects(found, image_objects(read_images(held_out), entries))
    metrics = {
        "recall": recall_table(hits, groups, params.recall_at),
        "novel_classes": len(groups["novel"]),
        "novel_classes_won": classes_won(hits, groups["novel"], rankings, params.recall_at),
    }
    write_json(OUTPUT / "metrics.json", {**metrics, **curve.last()})
    curve.write(OUTPUT / "curve.csv")


if __name__ == "__main__":
    main()
