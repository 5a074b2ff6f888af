"""Stage `proposals`: selective search boxes of one shard of the training pictures.

Run: python -m stages.proposals <shard>. Reads data/download/images/train/<shard>.parquet; writes
data/proposals/<shard>.parquet, rows in selective search's own order per picture.
"""

import argparse
import sys
from pathlib import Path

from stages.common.formats.images import count_pictures, read_pictures
from stages.common.runtime.parallel import num_workers
from stages.common.runtime.params import read_section, read_seed
from stages.common.runtime.progress import track
from stages.common.runtime.storage import write_table
from stages.proposals.params import ProposalsParams
from stages.proposals.search import proposal_table, search_pictures


def main() -> None:
    """Search the shard named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shard", type=int)
    shard = parser.parse_args().shard
    params = read_section("proposals", ProposalsParams)
    source = Path(f"data/download/images/train/{shard}.parquet")
    total = count_pictures(source)
    found = search_pictures(read_pictures(source), params, read_seed(), num_workers())
    table, report = proposal_table(track(found, f"proposals {shard}", total))
    write_table(Path(f"data/proposals/{shard}.parquet"), table)
    print(
        f"proposals {shard}: {report['proposals']} boxes of {report['images']} pictures; "
        f"{len(report['whole_image_instead'])} without any got the whole picture",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
