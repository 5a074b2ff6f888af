"""Stage `wspn`: train the proposal network with image labels of base classes.

Run: python -m stages.wspn. Reads the training images, their captions and proposals, and the
vision-language model (or the ImageNet weights that params.yaml names). It reads no ground truth;
with `wspn.image_labels: annotations` it reads which base classes people found in each image. Writes
data/wspn/. With `--label-splits base novel` the image labels cover all classes and come from
captions; `--output` names another folder (both for the comparator wsddn).

An ImageNet backbone is trained by several processes if there are several GPUs. On the features of
the small model training takes seconds on one core, so one process does it.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages.common.formats.captions import read_captions
from stages.common.formats.categories import ALL_SPLITS, read_categories
from stages.common.formats.images import read_images
from stages.common.formats.tables import boxes_by_image
from stages.common.runtime.checkpoints import Checkpoint, fingerprint
from stages.common.runtime.curves import Curve
from stages.common.runtime.devices import choose_device, prepare_device
from stages.common.runtime.params import read_exactness, read_section, read_seed, read_shards
from stages.common.runtime.processes import process_index, run_in_processes
from stages.common.runtime.progress import track
from stages.common.runtime.seeding import make_deterministic
from stages.common.runtime.storage import read_table, write_json
from stages.models.backbones.imagenet import load_imagenet_weights
from stages.models.proposals.file import save_wspn
from stages.models.proposals.imagenet import ImagenetWspn
from stages.models.proposals.language import LanguageWspn
from stages.models.vision_language.small_albef import load_small_albef
from stages.wspn.end_to_end import SECONDS_BETWEEN
from stages.wspn.examples import annotated_labels, choose_images, image_labels, make_examples
from stages.wspn.params import WspnParams
from stages.wspn.stream import ImageStream, read_image_ids
from stages.wspn.train import (
    build_on_imagenet,
    build_on_language,
    train_on_imagenet,
    train_on_language,
)

DOWNLOAD = Path("data/download")
VLM = Path("data/vlm/model.safetensors")
OUTPUT = Path("data/wspn")


class Inputs(NamedTuple):
    """What both kinds of network are trained on."""

    category_ids: list[int]
    labels: dict[int, np.ndarray]  # image → (C,)
    label_files: list[Path]
    images: list[Path]
    proposals: list[Path]
    chosen: set[int]  # images to train on


# The network, its metrics beside the curve's, and the resume point to remove.
Trained = tuple[LanguageWspn | ImagenetWspn, dict[str, Any], Checkpoint]


def main() -> None:
    """Run the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--label-splits", nargs="+", default=["base"], choices=["base", "novel"])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    params, seed = read_section("wspn", WspnParams), read_seed()
    small = params.model.backbone.kind == "vlm"
    # The small model's matrices are too small for a second thread to help.
    make_deterministic(seed, "wspn", threads=1 if small else None)
    inputs = _read_inputs(params, options.label_splits, seed)
    first = process_index() == 0
    curve = Curve(every=50, growing=options.output / "curve.csv" if first else None)
    train = _train_on_language if small else _train_on_imagenet
    model, metrics, checkpoint = train(params, seed, inputs, curve)
    if not first:
        return
    save_wspn(options.output / "model.safetensors", model)
    curve.write(options.output / "curve.csv")
    metrics |= curve.last()
    write_json(options.output / "metrics.json", metrics)
    checkpoint.remove()
    print(f"wspn: {metrics}", file=sys.stderr)


def _read_inputs(params: WspnParams, label_splits: list[str], seed: int) -> Inputs:
    """Read the image labels of the classes in `label_splits`, and choose the training images."""
    categories = read_categories(DOWNLOAD / "categories.json", ALL_SPLITS)
    labelled_ids = [c.id for c in categories if c.split in label_splits]
    # Annotated image labels exist for base classes only.
    source = params.image_labels if label_splits == ["base"] else "captions"
    shards = read_shards()
    label_files = [DOWNLOAD / f"{source}/train/{shard}.json" for shard in shards]
    if source == "captions":
        labels = image_labels(read_captions(*label_files), categories, labelled_ids)
    else:
        labels = annotated_labels(label_files, labelled_ids)
    images = [DOWNLOAD / f"images/train/{shard}.parquet" for shard in shards]
    proposals = [Path(f"data/proposals/{shard}.parquet") for shard in shards]
    chosen = choose_images(read_image_ids(images), params.max_images, seed)
    return Inputs(labelled_ids, labels, label_files, images, proposals, chosen)


def _train_on_language(params: WspnParams, seed: int, inputs: Inputs, curve: Curve) -> Trained:
    """Train on features of the small vision-language model."""
    chosen = inputs.chosen
    proposals: dict[int, np.ndarray] = {}
    for path in inputs.proposals:
        boxes = boxes_by_image(read_table(path))
        proposals |= {key: boxes[key].copy() for key in chosen & boxes.keys()}  # frees the table
    vlm, tokenizer = load_small_albef(VLM)
    model = build_on_language(vlm, tokenizer, inputs.category_ids, params.model)
    model.to(prepare_device(read_exactness()))
    images = (image for image in read_images(*inputs.images) if image.image_id in chosen)
    found = make_examples(model, images, proposals, inputs.labels, params.proposals_per_image, seed)
    examples = list(track(found, "wspn features", len(chosen)))
    return model, train_on_language(model, examples, params, seed, curve), Checkpoint(None)


def _train_on_imagenet(params: WspnParams, seed: int, inputs: Inputs, curve: Curve) -> Trained:
    """Train an ImageNet backbone end to end."""
    backbone, left_out = params.model.backbone, {}
    model = build_on_imagenet(inputs.category_ids, params)
    weights = [] if backbone.weights is None else [Path(backbone.weights)]
    for path in weights:
        left_out = load_imagenet_weights(model.trunk, path, backbone.sha256, "wspn.model.backbone")
    model.to(prepare_device(read_exactness()))
    images = ImageStream(inputs.images, inputs.proposals, inputs.chosen)
    settings = [params.model_dump(), seed, inputs.category_ids, model.device.type]
    files = [*inputs.label_files, *inputs.images, *inputs.proposals, *weights]
    checkpoint = Checkpoint(fingerprint(settings, files), SECONDS_BETWEEN)
    counts = train_on_imagenet(model, images, inputs.labels, params, seed, curve, checkpoint)
    labelled = [k for k, row in inputs.labels.items() if k in inputs.chosen and row.any()]
    metrics = {**counts, "images_with_label": len(labelled), "weights_left_out": left_out}
    return model, metrics, checkpoint


def start() -> None:
    """Run the stage in as many processes as its batch size and the devices allow."""
    params = read_section("wspn", WspnParams)
    if params.model.backbone.kind == "vlm":
        main()
    else:
        batch_size = params.end_to_end.batch_size
        run_in_processes("stages.wspn.__main__", choose_device(read_exactness()), batch_size)


if __name__ == "__main__":
    start()
