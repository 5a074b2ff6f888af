"""Stage `finetune`: continue the detector's training with the ground truth of base classes only.

Run: python -m stages.finetune. Objects of novel and excluded classes are removed from the labels,
and images without a base object are left out. If nobody has annotated the images, the detector is
copied as it is.

`finetune.supervision` may also name the detector's own sources, with objects of all classes of the
softmax. Options, for comparators and further sources:

- `--source name=file`: a further source;
- `--annotations`: a COCO file in place of the ground truth;
- `--label-splits base novel`: learn objects of novel classes too;
- `--output`: a folder in place of data/finetune;
- `--section`: a section of params.yaml in place of `finetune`;
- `--method`: a comparator's params, merged into that section.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from stages.common.formats.categories import ALL_SPLITS, read_categories
from stages.common.formats.ground_truth import SKIPPED, is_annotated
from stages.common.formats.stored_images import StoredImages
from stages.common.runtime.curves import Curve
from stages.common.runtime.devices import choose_device, prepare_device
from stages.common.runtime.params import read_exactness, read_section, read_seed, read_shards
from stages.common.runtime.processes import process_index, run_in_processes
from stages.common.runtime.seeding import make_deterministic
from stages.common.runtime.storage import replace_file, write_json
from stages.finetune.params import FinetuneParams
from stages.finetune.unlabelled import label_novel_detections
from stages.models.detection.detector import load, read_architecture
from stages.models.detection.params import network_params
from stages.models.detection.region_hooks import check_hooks
from stages.models.detection.supervision import (
    Supervision,
    labels_by_id,
    read_sources,
    source_file,
)
from stages.models.detection.training_run import train_and_save

DETECTOR = Path("data/detector/model.safetensors")
TRUTH = "ground_truth"  # the source to which `finetune.unlabelled` applies
ANNOTATIONS = Path("data/download/ground_truth/train.json")
SUPERVISION = Path("data/supervision")  # the detector's sources
CATEGORIES = Path("data/download/categories.json")


def keep_detector(output: Path) -> None:
    """Copy the detector to `output`: without annotations there is nothing to fine-tune it on."""
    with replace_file(output / "model.safetensors") as partial:
        shutil.copyfile(DETECTOR, partial)
    Curve(every=1).write(output / "curve.csv")
    write_json(output / "metrics.json", {"skipped": SKIPPED, "images": 0})
    print(f"finetune: {SKIPPED}; its model is the detector's")


def main() -> None:
    """Run the stage."""
    options = _read_options()
    params = read_section(options.section, FinetuneParams, method=options.method)
    seed = read_seed()
    shards = [Path(f"data/download/images/train/{shard}.parquet") for shard in read_shards()]
    make_deterministic(seed, "finetune")
    device = prepare_device(read_exactness())
    if not is_annotated(options.annotations):
        if process_index() == 0:
            keep_detector(options.output)
        return

    check_hooks(params, options.section)
    categories = read_categories(CATEGORIES)
    known_ids = [category.id for category in read_categories(CATEGORIES, ALL_SPLITS)]
    labelled = [k for k, c in enumerate(categories) if c.split in options.label_splits]
    unlabelled = [k for k in range(len(categories)) if k not in labelled]
    vocabulary = labelled if params.vocabulary == "base" else list(range(len(categories)))
    labels = labels_by_id(categories, vocabulary)
    truth_labels = {categories[k].id: labels[categories[k].id] for k in labelled}
    files = {path.stem: (path, labels) for path in sorted(SUPERVISION.glob("*.json"))}
    files |= {TRUTH: (options.annotations, truth_labels)}
    files |= {name: (path, labels) for name, path in options.source}
    images = StoredImages(*shards)
    sources = read_sources(params.supervision, files, known_ids, images, options.section)
    model = load(DETECTOR).to(device)
    if params.unlabelled == "detections" and unlabelled:
        for place, source in enumerate(sources):
            if source.name == TRUTH:
                more = label_novel_detections(
                    model, source.images, vocabulary, unlabelled, params.detections
                )
                sources[place] = replace(source, images=more)
    annotations = [files[source.name][0] for source in sources]
    train_and_save(
        options.output,
        model,
        Supervision(sources, params.supervision.draw),
        params.training,
        seed,
        vocabulary,
        settings=[params.model_dump(), labelled],
        inputs=[DETECTOR, *annotations, CATEGORIES, *shards],
        section=options.section,
    )


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("data/finetune"))
    parser.add_argument("--source", action="append", type=source_file, default=[])
    parser.add_argument("--section", default="finetune")
    parser.add_argument("--method", type=Path)
    parser.add_argument("--annotations", type=Path, default=ANNOTATIONS)
    splits = ["base", "novel"]
    parser.add_argument("--label-splits", nargs="+", default=["base"], choices=splits)
    return parser.parse_args()


def start() -> None:
    """Run the stage in as many processes as its batch and the devices allow."""
    options = _read_options()
    params = read_section(options.section, FinetuneParams, method=options.method)
    network = network_params(read_architecture(DETECTOR))
    batch_size = params.training.batch_size if "micro_batches" in network.supports else 1
    run_in_processes("stages.finetune.__main__", choose_device(read_exactness()), batch_size)


if __name__ == "__main__":
    start()
