"""Stage `detector`: train the detector on the sources that detector.supervision names.

Run: python -m stages.detector. Reads the sources' files, which stage `supervision` writes, and
learns the classes of which a source has objects. The default source, the pseudo-masks, has no
ground truth in it. Options, for comparators:

- `--annotations`: one COCO file in place of all sources (for the oracle: ground truth);
- `--output`: a folder in place of data/detector;
- `--section`: a section of params.yaml in place of `detector`;
- `--method`: a comparator's params, merged into that section;
- `--label-splits base`: learn only objects of base classes, by a softmax over these classes, as if
  nobody had labelled the others.
"""

import argparse
from pathlib import Path

from stages.common.formats.categories import ALL_SPLITS, read_categories
from stages.common.formats.stored_images import StoredImages
from stages.common.runtime.devices import choose_device, prepare_device
from stages.common.runtime.params import read_exactness, read_section, read_seed, read_shards
from stages.common.runtime.processes import run_in_processes
from stages.common.runtime.seeding import make_deterministic
from stages.common.runtime.storage import read_tensors
from stages.detector.params import GIVEN, DetectorParams
from stages.models.detection.detector import build
from stages.models.detection.initial_weights import load_start
from stages.models.detection.region_hooks import check_hooks
from stages.models.detection.supervision import Supervision, labels_by_id, read_sources
from stages.models.detection.training_run import train_and_save

CATEGORIES = Path("data/download/categories.json")
SUPERVISION = Path("data/supervision")
EMBEDDINGS = Path("data/vocabulary/embeddings.safetensors")
VLM = Path("data/vlm/model.safetensors")


def main() -> None:
    """Run the stage."""
    options = _read_options()
    params = read_section(options.section, DetectorParams, method=options.method)
    seed = read_seed()
    shards = [Path(f"data/download/images/train/{shard}.parquet") for shard in read_shards()]
    make_deterministic(seed, "detector")
    device = prepare_device(read_exactness())

    check_hooks(params, options.section)
    categories = read_categories(CATEGORIES)
    known_ids = [category.id for category in read_categories(CATEGORIES, ALL_SPLITS)]
    taught = params.supervision.taught_splits()
    splits = [split for split in options.label_splits if options.annotations or split in taught]
    learned = [k for k, category in enumerate(categories) if category.split in splits]
    labels = labels_by_id(categories, learned)
    supervision = GIVEN if options.annotations else params.supervision
    files = {
        source.name: (options.annotations or SUPERVISION / f"{source.name}.json", labels)
        for source in supervision.sources
    }
    images = StoredImages(*shards)
    sources = read_sources(supervision, files, known_ids, images, options.section)
    embeddings = read_tensors(EMBEDDINGS)[0]["embeddings"]
    if len(embeddings) != len(categories):
        raise ValueError(
            f"{EMBEDDINGS}: {len(embeddings)} embeddings for {len(categories)} base and novel"
            " categories; run `dvc repro vocabulary`"
        )
    model = build(params.architecture, params.network, embeddings, params.region_head)
    started_from = load_start(model, params, VLM, options.section)
    annotations = [path for path, _ in files.values()]
    train_and_save(
        options.output,
        model.to(device),
        Supervision(sources, supervision.draw),
        params.training,
        seed,
        vocabulary=None if len(learned) == len(categories) else learned,
        settings=[params.model_dump(), learned],
        inputs=[*annotations, EMBEDDINGS, CATEGORIES, *shards, *started_from],
        section=options.section,
    )


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotations", type=Path)
    parser.add_argument("--output", type=Path, default=Path("data/detector"))
    parser.add_argument("--section", default="detector")
    parser.add_argument("--method", type=Path)
    splits = ["base", "novel"]
    parser.add_argument("--label-splits", nargs="+", default=splits, choices=splits)
    return parser.parse_args()


def start() -> None:
    """Run the stage in as many processes as its batch and the devices allow."""
    options = _read_options()
    params = read_section(options.section, DetectorParams, method=options.method)
    batch_size = params.training.batch_size if "micro_batches" in params.network.supports else 1
    run_in_processes("stages.detector.__main__", choose_device(read_exactness()), batch_size)


if __name__ == "__main__":
    start()
