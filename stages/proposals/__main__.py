"""Stage `proposals`: selective search boxes of one shard of the training images.

Run: python -m stages.proposals <shard>. Reads data/download/images/train/<shard>.parquet and writes
data/proposals/<shard>.parquet, the rows of each image in selective search's order. Given `val` or
`test` instead of a shard, it searches the images of that split, for comparators that are measured
on them. `--output` names another folder than data/proposals.
"""

import argparse
import sys
from pathlib import Path
from typing import get_args

from stages.common.formats.images import count_images, read_images
from stages.common.runtime.parallel import num_workers
from stages.common.runtime.params import Split, read_section, read_seed
from stages.common.runtime.progress import track
from stages.common.runtime.storage import write_table
from stages.proposals.params import ProposalsParams
from stages.proposals.search import proposal_table, search_images


def main() -> None:
    """Search the images named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shard")
    parser.add_argument("--output", type=Path, default=Path("data/proposals"))
    options = parser.parse_args()
    shard = options.shard
    params = read_section("proposals", ProposalsParams)
    folder = Path("data/download/images")
    source = (folder if shard in get_args(Split) else folder / "train") / f"{shard}.parquet"
    total = count_images(source)
    found = search_images(read_images(source), params, read_seed(), num_workers())
    table, report = proposal_table(track(found, f"proposals {shard}", total))
    write_table(options.output / f"{shard}.parquet", table)
    print(
        f"proposals {shard}: {report['proposals']} boxes of {report['images']} images; "
        f"{len(report['whole_image_instead'])} images without any got the whole image",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
