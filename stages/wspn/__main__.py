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
from functools import partial
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
from stages.models.backbones.imagenet import freeze_stages, load_imagenet_weights
from stages.models.proposals.file import save_wspn
from stages.models.proposals.imagenet import ImagenetWspn, ImagenetWspnConfig
from stages.models.proposals.language import LanguageWspn, LanguageWspnConfig
from stages.models.vision_language.small_albef import load_small_albef
from stages.wspn.classify import train_class_part
from stages.wspn.end_to_end import SECONDS_BETWEEN, ViewStream, train_end_to_end
from stages.wspn.examples import (
    annotated_labels,
    choose_images,
    image_labels,
    make_examples,
)
from stages.wspn.localise import find_seeds, object_targets, train_object_part
from stages.wspn.params import WspnParams
from stages.wspn.refine import image_losses
from stages.wspn.stream import ImageStream, read_image_ids

DOWNLOAD = Path("data/download")
OUTPUT = Path("data/wspn")


class Inputs(NamedTuple):
    """What both kinds of network are trained on."""

    category_ids: list[int]
    labels: dict[int, np.ndarray]  # image → (C,)
    label_files: list[Path]
    images: list[Path]
    proposals: list[Path]


class Trained(NamedTuple):
    """What a training returns besides its curve."""

    model: LanguageWspn | ImagenetWspn
    metrics: dict[str, Any]
    checkpoint: Checkpoint


def main() -> None:
    """Run the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--label-splits", nargs="+", default=["base"], choices=["base", "novel"])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    params, seed, shards = read_section("wspn", WspnParams), read_seed(), read_shards()
    kind = params.model.backbone.kind
    # The small model's matrices are too small for a second thread to help.
    make_deterministic(seed, "wspn", threads=1 if kind == "vlm" else None)
    categories = read_categories(DOWNLOAD / "categories.json", ALL_SPLITS)
    labelled_ids = [c.id for c in categories if c.split in options.label_splits]
    # Annotated image labels exist for base classes only.
    source = params.image_labels if options.label_splits == ["base"] else "captions"
    label_files = [DOWNLOAD / f"{source}/train/{shard}.json" for shard in shards]
    if source == "captions":
        labels = image_labels(read_captions(*label_files), categories, labelled_ids)
    else:
        labels = annotated_labels(label_files, labelled_ids)
    inputs = Inputs(
        labelled_ids,
        labels,
        label_files,
        [DOWNLOAD / f"images/train/{shard}.parquet" for shard in shards],
        [Path(f"data/proposals/{shard}.parquet") for shard in shards],
    )
    train = train_on_language if kind == "vlm" else train_on_imagenet
    first = process_index() == 0
    curve = Curve(every=50, growing=options.output / "curve.csv" if first else None)
    trained = train(params, seed, inputs, curve)
    if not first:
        return
    save_wspn(options.output / "model.safetensors", trained.model)
    curve.write(options.output / "curve.csv")
    metrics = trained.metrics | curve.last()
    write_json(options.output / "metrics.json", metrics)
    trained.checkpoint.remove()
    print(f"wspn: {metrics}", file=sys.stderr)


def train_on_language(params: WspnParams, seed: int, inputs: Inputs, curve: Curve) -> Trained:
    """Train on features of the small vision-language model, which are computed once."""
    chosen = choose_images(read_image_ids(inputs.images), params.max_images, seed)
    proposals: dict[int, np.ndarray] = {}
    for path in inputs.proposals:
        boxes = boxes_by_image(read_table(path))
        proposals |= {key: boxes[key].copy() for key in chosen & boxes.keys()}  # frees the table
    vlm, tokenizer = load_small_albef(Path("data/vlm/model.safetensors"))
    config = LanguageWspnConfig(
        category_ids=inputs.category_ids,
        stem_width=vlm.config.stem_width,
        width=vlm.config.width,
        residual_blocks=vlm.config.residual_blocks,
        num_words=len(tokenizer.content_words()),
        **params.model.model_dump(exclude={"backbone"}),
    )
    model = LanguageWspn(config).eval()
    model.take_language(vlm, tokenizer)
    model.to(prepare_device(read_exactness()))

    images = (image for image in read_images(*inputs.images) if image.image_id in chosen)
    examples = list(
        track(
            make_examples(
                model, images, proposals, inputs.labels, params.proposals_per_image, seed
            ),
            "wspn features",
            len(chosen),
        )
    )
    train_class_part(model, examples, params.classify, seed, curve)
    seeds = [find_seeds(model, example, params.seeds) for example in examples]
    targets = object_targets(examples, seeds, params.localise)
    done = params.classify.epochs * -(-len(examples) // params.classify.batch_size)
    train_object_part(model, targets, params.localise, seed, curve, done)
    metrics = {
        "images": len(examples),
        "images_with_label": sum(bool(example.labels.any()) for example in examples),
        "seeds": sum(map(len, seeds)),
        "proposals": sum(len(example.boxes_xyxy) for example in examples),
        "proposals_with_quality": int(targets.has_quality.sum()),
        "proposals_with_regression": int(targets.has_offsets.sum()),
    }
    return Trained(model, metrics, Checkpoint(None))


def train_on_imagenet(params: WspnParams, seed: int, inputs: Inputs, curve: Curve) -> Trained:
    """Train an ImageNet backbone end to end."""
    backbone = params.model.backbone
    assert backbone.kind != "vlm"
    config = ImagenetWspnConfig(
        backbone=backbone.kind,
        category_ids=inputs.category_ids,
        refinements=len(params.end_to_end.refinement_weights),
        dropout=params.model.dropout,
        regions_at_once=backbone.regions_at_once,
    )
    model, left_out = ImagenetWspn(config), {}
    weights = [] if backbone.weights is None else [Path(backbone.weights)]
    for path in weights:
        left_out = load_imagenet_weights(model.trunk, path, backbone.sha256, "wspn.model.backbone")
    model.to(prepare_device(read_exactness()))
    chosen = choose_images(read_image_ids(inputs.images), params.max_images, seed)
    images = ImageStream(inputs.images, inputs.proposals, chosen)
    settings = [params.model_dump(), seed, inputs.category_ids, model.device.type]
    files = [*inputs.label_files, *inputs.images, *inputs.proposals, *weights]
    checkpoint = Checkpoint(fingerprint(settings, files), SECONDS_BETWEEN)
    run = params.end_to_end
    views = ViewStream(
        images,
        inputs.labels,
        len(inputs.category_ids),
        run.views,
        params.proposals_per_image,
        seed,
    )
    losses = partial(image_losses, training=run, seeds=params.seeds, localise=params.localise)
    freeze_stages(model.trunk, backbone.frozen_stages)
    train_end_to_end(model, views, losses, run, seed, curve, checkpoint)
    metrics = {
        "images": len(images),
        "images_with_label": sum(
            bool(row.any()) for k, row in inputs.labels.items() if k in chosen
        ),
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameters_trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "weights_left_out": left_out,
    }
    return Trained(model, metrics, checkpoint)


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
