"""Stage `phrases`: approximately localized phrases of Localized Narratives.

Run: python -m stages.phrases. Reads what people said of the training images while they pointed;
where nobody did, it writes files without a phrase. Writes under data/phrases: annotations.json,
boxes of the phrases that name a class, in COCO's form without masks; phrases.parquet, every phrase
with its sentence, characters, seconds, points and box; metrics.json, frequencies.csv and
montage.png. Reads no ground truth: what the boxes are worth is told by `phrase_quality`.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from stages.common.drawing.montage import write_png
from stages.common.formats.captions import MentionFinder
from stages.common.formats.categories import ALL_SPLITS, read_categories
from stages.common.formats.coco import read_image_list
from stages.common.formats.narratives import Narrative, NarrativeReader
from stages.common.formats.stored_images import find_images
from stages.common.runtime.parallel import map_in_order, num_workers
from stages.common.runtime.params import read_section, read_seed, read_shards
from stages.common.runtime.progress import track
from stages.common.runtime.seeding import numpy_generator
from stages.common.runtime.storage import write_json, write_rows, write_table
from stages.phrases.figure import Example, choose, draw_montage
from stages.phrases.narrated import Narrated, narrated_phrases
from stages.phrases.noun_phrases import make_parser
from stages.phrases.params import PhrasesParams
from stages.phrases.summary import frequency_rows, make_dataset, make_metrics, make_table

DOWNLOAD = Path("data/download")
OUTPUT = Path("data/phrases")


def main() -> None:
    """Write all outputs."""
    params, seed, shards = read_section("phrases", PhrasesParams), read_seed(), read_shards()
    categories = read_categories(DOWNLOAD / "categories.json")
    finder = MentionFinder(read_categories(DOWNLOAD / "categories.json", ALL_SPLITS))
    parquets = [DOWNLOAD / f"images/train/{shard}.parquet" for shard in shards]
    images = sorted(read_image_list(*parquets), key=lambda image: image["id"])
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    paths = [DOWNLOAD / f"narratives/train/{shard}.jsonl" for shard in shards]
    make_parser(params)  # an error to come before workers are started

    work = partial(_phrases_of, sizes=sizes, finder=finder, params=params)
    found = map_in_order(work, read_narratives(paths), num_workers())
    each = list(track(found, "phrases, narratives"))
    phrases = [phrase for own in each for phrase in own]
    dataset = make_dataset(phrases, images, categories, params.several)
    metrics = make_metrics(phrases, dataset, categories, len(each))
    write_json(OUTPUT / "annotations.json", dataset, indent=None)
    write_table(OUTPUT / "phrases.parquet", make_table(phrases))
    write_json(OUTPUT / "metrics.json", metrics)
    write_rows(OUTPUT / "frequencies.csv", frequency_rows(phrases, categories))
    chosen = choose(phrases, params.montage_rows, numpy_generator(seed, "phrases montage"))
    write_png(OUTPUT / "montage.png", draw_montage(_examples(chosen, paths, parquets), categories))
    labels = metrics["labels"]
    print(
        f"phrases: {labels['all']} labels ({labels['base']} base, {labels['novel']} novel) of"
        f" {metrics['phrases']} phrases in {metrics['narratives']} narratives"
    )


def read_narratives(paths: list[Path]) -> Iterator[Narrative]:
    """Yield the narratives that stage download has written; it left out broken ones."""
    return NarrativeReader(0.0).read(paths)


def _phrases_of(
    narrative: Narrative,
    sizes: dict[int, tuple[int, int]],
    finder: MentionFinder,
    params: PhrasesParams,
) -> list[Narrated]:
    image_hw = sizes[int(narrative.image_id)]
    return narrated_phrases(narrative, image_hw, make_parser(params), finder, params)


def _examples(chosen: list[Narrated], paths: list[Path], parquets: list[Path]) -> list[Example]:
    """Return the chosen phrases with images and traces; narratives are read once more."""
    by_image = {phrase.image_id: phrase for phrase in chosen}
    if not by_image:
        return []
    traces = {
        image_id: narrative.trace
        for narrative in read_narratives(paths)
        if (image_id := int(narrative.image_id)) in by_image
        and by_image[image_id].sentence in narrative.caption
    }
    images = {p.image_id: p.decode() for p in find_images(set(by_image), *parquets)}
    return [Example(p, images[p.image_id], traces[p.image_id]) for p in chosen]


if __name__ == "__main__":
    main()
