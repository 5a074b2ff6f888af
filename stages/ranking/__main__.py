"""Stage `ranking`: the proposal network's top-K boxes of each image of one shard.

Run: python -m stages.ranking <shard>. Reads images, proposals and data/wspn; writes
data/ranking/<shard>.parquet, best box first per image.
"""

import argparse
from pathlib import Path

import numpy as np

from stages.common.formats.images import count_images, read_images
from stages.common.formats.tables import boxes_by_image, boxes_table
from stages.common.runtime.devices import prepare_device
from stages.common.runtime.params import read_exactness, read_section, read_seed
from stages.common.runtime.prefetch import prefetch
from stages.common.runtime.progress import track
from stages.common.runtime.seeding import make_deterministic
from stages.common.runtime.storage import read_table, write_table
from stages.models.proposals.file import load_wspn
from stages.models.proposals.ranking import rank_proposals
from stages.ranking.params import RankingParams


def main() -> None:
    """Rank the shard named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shard", type=int)
    shard = parser.parse_args().shard
    params = read_section("ranking", RankingParams)
    make_deterministic(read_seed(), "ranking", threads=1)  # too little work for a second thread
    images = Path(f"data/download/images/train/{shard}.parquet")
    source = Path(f"data/proposals/{shard}.parquet")
    proposals = boxes_by_image(read_table(source))
    model = load_wspn(Path("data/wspn/model.safetensors")).to(prepare_device(read_exactness()))

    # For a shard without images: a table without rows, with the same types.
    image_ids, boxes, scores = (
        [np.zeros(0, np.int64)],
        [np.zeros((0, 4), np.float32)],
        [np.zeros(0, np.float32)],
    )
    stored = track(read_images(images), f"ranking {shard}", count_images(images))
    for image, pixels in prefetch(lambda image: (image, image.decode()), stored):
        if image.image_id not in proposals:
            raise ValueError(
                f"{source}: no row for image {image.image_id} of {images}; rerun `proposals`"
            )
        best, ranked = rank_proposals(model, pixels, proposals[image.image_id], params)
        image_ids.append(np.full(len(best), image.image_id))
        boxes.append(best)
        scores.append(ranked)
    table = boxes_table(
        np.concatenate(image_ids), np.concatenate(boxes), score=np.concatenate(scores)
    )
    write_table(Path(f"data/ranking/{shard}.parquet"), table)


if __name__ == "__main__":
    main()
