"""Stage `wspn`: train the proposal network with image labels of base classes.

Run: python -m stages.wspn. Reads the training pictures, their captions and proposals, and the
vision-language model; no ground truth. Writes data/wspn/. With `--label-splits base novel` the
labels are those of all classes, and `--output` names another folder (the claims' detector from
image labels alone).
"""

import argparse
import sys
from pathlib import Path

from stages.common.captions import read_captions
from stages.common.categories import ALL_SPLITS, read_categories
from stages.common.curves import Curve
from stages.common.devices import prepare_device
from stages.common.images import read_pictures
from stages.common.params import read_exactness, read_section, read_seed, read_shards
from stages.common.progress import track
from stages.common.seeding import make_deterministic
from stages.common.storage import read_table, write_json
from stages.common.tables import boxes_by_image
from stages.models.albef import load_albef
from stages.models.wspn import Wspn, WspnConfig, save_wspn
from stages.wspn.classify import train_class_part
from stages.wspn.examples import choose_images, image_labels, make_examples
from stages.wspn.localise import find_seeds, make_lessons, train_object_part
from stages.wspn.params import WspnParams

DOWNLOAD = Path("data/download")
OUTPUT = Path("data/wspn")


def main() -> None:
    """Run the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--label-splits", nargs="+", default=["base"], choices=["base", "novel"])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    params, seed, shards = read_section("wspn", WspnParams), read_seed(), read_shards()
    make_deterministic(seed, "wspn", threads=1)  # small matrices: a second thread only waits
    categories = read_categories(DOWNLOAD / "categories.json", ALL_SPLITS)
    labelled_ids = [c.id for c in categories if c.split in options.label_splits]
    captions = read_captions(*(DOWNLOAD / f"captions/train/{shard}.json" for shard in shards))
    labels = image_labels(captions, categories, labelled_ids)
    proposals: dict = {}
    for shard in shards:
        proposals |= boxes_by_image(read_table(Path(f"data/proposals/{shard}.parquet")))
    vlm, tokenizer = load_albef(Path("data/vlm/model.safetensors"))
    config = WspnConfig(
        category_ids=labelled_ids,
        stem_width=vlm.config.stem_width,
        width=vlm.config.width,
        residual_blocks=vlm.config.residual_blocks,
        num_words=len(tokenizer.content_words()),
        **params.model.model_dump(),
    )
    model = Wspn(config).eval()
    model.take_language(vlm, tokenizer)
    model.to(prepare_device(read_exactness()))

    chosen = choose_images(proposals, params.max_images, seed)
    stored = read_pictures(*(DOWNLOAD / f"images/train/{shard}.parquet" for shard in shards))
    pictures = (picture for picture in stored if picture.image_id in chosen)
    examples = list(
        track(
            make_examples(model, pictures, proposals, labels, params.proposals_per_image, seed),
            "wspn features",
            len(chosen),
        )
    )
    curve = Curve(every=50)
    train_class_part(model, examples, params.classify, seed, curve)
    seeds = [find_seeds(model, example, params.seeds) for example in examples]
    lessons = make_lessons(examples, seeds, params.localise)
    done = params.classify.epochs * -(-len(examples) // params.classify.batch_size)
    train_object_part(model, lessons, params.localise, seed, curve, done)

    save_wspn(options.output / "model.safetensors", model)
    curve.write(options.output / "curve.csv")
    metrics = {
        "pictures": len(examples),
        "pictures_with_label": sum(bool(example.labels.any()) for example in examples),
        "seeds": sum(map(len, seeds)),
        "proposals": sum(len(example.boxes_xyxy) for example in examples),
        "proposals_with_quality": int(lessons.judged.sum()),
        "proposals_with_regression": int(lessons.regressed.sum()),
        **curve.last(),
    }
    write_json(options.output / "metrics.json", metrics)
    print(f"wspn: {metrics}", file=sys.stderr)


if __name__ == "__main__":
    main()
