"""Stage `detector`: train the detector on the sources that detector.supervision names.

Run: python -m stages.detector. Reads the sources' files, which stage `supervision` writes, and
learns the classes of which a source has objects. The default source, the pseudo-masks, has no
ground truth in it. Options, for comparators:

- `--annotations`: one COCO file in place of those of all sources (for the oracle: ground truth);
- `--output`: a folder in place of data/detector;
- `--section`: a section of params.yaml in place of `detector`;
- `--method`: a comparator's params, merged into that section;
- `--label-splits base`: learn only objects of base classes, by a softmax over these classes, as if
  nobody had labelled the others.
"""

import argparse
from pathlib import Path

from stages.common.formats.categories import read_categories
from stages.common.formats.stored_images import StoredImages
from stages.common.runtime.checkpoints import Checkpoint, fingerprint
from stages.common.runtime.curves import Curve
from stages.common.runtime.devices import choose_device, prepare_device
from stages.common.runtime.params import read_exactness, read_section, read_seed, read_shards
from stages.common.runtime.processes import process_index, run_in_processes
from stages.common.runtime.seeding import make_deterministic
from stages.common.runtime.storage import read_tensors, write_json
from stages.detector.params import DetectorParams
from stages.models.detection.detector import build, save
from stages.models.detection.initial_weights import load_start
from stages.models.detection.region_hooks import hook_files
from stages.models.detection.supervision import Supervision, read_sources
from stages.models.detection.training import train_detector, training_metrics

DOWNLOAD = Path("data/download")
SUPERVISION = Path("data/supervision")
EMBEDDINGS = Path("data/vocabulary/embeddings.safetensors")
VLM = Path("data/vlm/model.safetensors")


def main() -> None:
    """Run the stage."""
    options = _read_options()
    params = read_section(options.section, DetectorParams, method=options.method)
    seed = read_seed()
    shards = [DOWNLOAD / f"images/train/{shard}.parquet" for shard in read_shards()]
    make_deterministic(seed, "detector")
    device = prepare_device(read_exactness())

    categories = read_categories(DOWNLOAD / "categories.json")
    every = read_categories(DOWNLOAD / "categories.json", ("base", "novel", "excluded"))
    told = {own.classes for own in params.supervision.sources}
    splits = [s for s in options.label_splits if options.annotations or told & {s, "all"}]
    learned = [k for k, c in enumerate(categories) if c.split in splits]
    labels = {categories[k].id: place + 1 for place, k in enumerate(learned)}
    files = {
        own.name: (options.annotations or SUPERVISION / f"{own.name}.json", labels)
        for own in params.supervision.sources
    }
    sources = read_sources(
        params.supervision, files, [c.id for c in every], StoredImages(*shards), options.section
    )
    supervision = Supervision(sources, params.supervision.draw)
    embeddings = read_tensors(EMBEDDINGS)[0]["embeddings"]
    if len(embeddings) != len(categories):
        raise ValueError(
            f"{EMBEDDINGS}: {len(embeddings)} embeddings for {len(categories)} base and novel"
            " categories; run `dvc repro vocabulary`"
        )
    model = build(params.architecture, params.network, embeddings, params.region_head)
    started_from = load_start(model, params, VLM, options.section)

    model.to(device)
    read = [files[source.name][0] for source in sources]
    inputs = [*read, EMBEDDINGS, DOWNLOAD / "categories.json", *shards]
    hooks = [own.module for own in params.training.region_losses]
    hooks += [] if params.region_head is None else [params.region_head]
    inputs += [*started_from, *hook_files(hooks)]
    settings = [params.model_dump(), seed, device.type, learned]
    checkpoint = Checkpoint(fingerprint(settings, inputs))
    growing = options.output / "curve.csv" if process_index() == 0 else None
    curve = Curve(every=20, growing=growing)
    vocabulary = None if len(learned) == len(categories) else learned
    train_detector(model, supervision, params.training, seed, curve, vocabulary, checkpoint)
    if process_index() > 0:
        return  # the first process writes
    save(options.output / "model.safetensors", model)
    curve.write(options.output / "curve.csv")
    metrics = training_metrics(model, supervision, curve)
    write_json(options.output / "metrics.json", metrics)
    checkpoint.remove()


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
