"""Stage `phrase_labels`: the phrases of all shards as labels, with their counts and a montage.

Run: python -m stages.phrase_labels. Writes under data/phrase_labels: annotations.json, boxes of the
phrases that name a class, in COCO's form without masks; metrics.json, frequencies.csv and
montage.png. Without narratives it writes files without a phrase.
"""

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float64

from stages.common.drawing.montage import write_png
from stages.common.formats.categories import read_categories
from stages.common.formats.coco import read_image_list
from stages.common.formats.narratives import parse_narrative
from stages.common.formats.stored_images import find_images
from stages.common.runtime.params import read_section, read_seed, read_shards
from stages.common.runtime.seeding import numpy_generator
from stages.common.runtime.storage import read_table, write_json, write_rows
from stages.phrase_labels.figure import Example, choose, draw_montage
from stages.phrase_labels.params import PhraseLabelsParams
from stages.phrase_labels.summary import frequency_rows, make_dataset, make_metrics

DOWNLOAD = Path("data/download")
PHRASES = Path("data/phrases")
OUTPUT = Path("data/phrase_labels")


def main() -> None:
    """Write all outputs."""
    params = read_section("phrase_labels", PhraseLabelsParams)
    seed, shards = read_seed(), read_shards()
    categories = read_categories(DOWNLOAD / "categories.json")
    parquets = [DOWNLOAD / f"images/train/{shard}.parquet" for shard in shards]
    images = sorted(read_image_list(*parquets), key=lambda image: image["id"])
    table = pa.concat_tables(read_table(PHRASES / f"{shard}.parquet") for shard in shards)

    chosen = choose(table, params.montage_rows, numpy_generator(seed, "phrases montage"))
    narratives = [DOWNLOAD / f"narratives/train/{shard}.jsonl" for shard in shards]
    num_narratives, traces = read_traces(narratives, chosen)
    dataset = make_dataset(table, images, categories, params.several)
    metrics = make_metrics(table, dataset, categories, num_narratives)
    write_json(OUTPUT / "annotations.json", dataset, indent=None)
    write_json(OUTPUT / "metrics.json", metrics)
    write_rows(OUTPUT / "frequencies.csv", frequency_rows(table, categories))
    stored = find_images(traces.keys(), *parquets)
    pixels = {image.image_id: image.decode() for image in stored}
    examples = [Example(p, pixels[p["image_id"]], traces[p["image_id"]]) for p in chosen]
    write_png(OUTPUT / "montage.png", draw_montage(examples, categories))
    labels = metrics["labels"]
    print(
        f"phrase_labels: {labels['all']} labels ({labels['base']} base, {labels['novel']} novel) of"
        f" {metrics['phrases']} phrases in {metrics['narratives']} narratives"
    )


def read_traces(
    paths: list[Path], phrases: Collection[dict[str, Any]]
) -> tuple[int, dict[int, Float64[np.ndarray, "_ 3"]]]:
    """Return how many narratives there are, and the trace of each phrase's, by image.

    Each phrase is of another image. Lines of other narratives are counted, and not parsed.
    """
    places = {f'"image_id": "{phrase["image_id"]}"': phrase["narrative"] for phrase in phrases}
    count, traces = 0, {}
    read: Counter[str] = Counter()  # narratives of each phrase's image so far
    for path in paths:
        with path.open(encoding="utf-8") as file:
            for line in file:
                count += 1
                for image, place in places.items():
                    if image in line:
                        if read[image] == place:
                            own = parse_narrative(line)
                            traces[int(own.image_id)] = own.trace
                        read[image] += 1
    return count, traces


if __name__ == "__main__":
    main()
