"""Stage `phrases`: approximately localized phrases of a shard's Localized Narratives.

Run: python -m stages.phrases 0. Reads what people said of the training images while they pointed,
and writes data/phrases/<shard>.parquet: every phrase with its narrative, sentence, characters,
seconds, points and box. Where nobody pointed the table is empty. Reads no ground truth: what the
boxes are worth is told by `phrase_quality`.
"""

from collections import Counter
from pathlib import Path

from stages.common.formats.captions import MentionFinder
from stages.common.formats.categories import ALL_SPLITS, read_categories
from stages.common.formats.coco import read_image_list
from stages.common.formats.narratives import NarrativeReader
from stages.common.runtime.params import read_section, shard_argument
from stages.common.runtime.progress import track
from stages.common.runtime.storage import write_table
from stages.phrases.narrated import Narrated, make_table, narrated_phrases
from stages.phrases.noun_phrases import make_parser
from stages.phrases.params import PhrasesParams

DOWNLOAD = Path("data/download")
OUTPUT = Path("data/phrases")


def main(shard: str) -> None:
    """Run the stage for one shard. A narrative of 37 words takes 2 ms, one trace is in memory."""
    params = read_section("phrases", PhrasesParams)
    finder = MentionFinder(read_categories(DOWNLOAD / "categories.json", ALL_SPLITS))
    images = read_image_list(DOWNLOAD / f"images/train/{shard}.parquet")
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    parse = make_parser(params)

    # Stage download has left out broken ones.
    narratives = NarrativeReader(0.0).read([DOWNLOAD / f"narratives/train/{shard}.jsonl"])
    phrases: list[Narrated] = []
    read: Counter[int] = Counter()  # narratives of each image so far
    for narrative in track(narratives, "phrases, narratives"):
        image_id = int(narrative.image_id)
        place = read[image_id]
        phrases += narrated_phrases(narrative, place, sizes[image_id], parse, finder, params)
        read[image_id] += 1
    write_table(OUTPUT / f"{shard}.parquet", make_table(phrases))


if __name__ == "__main__":
    main(shard_argument())
