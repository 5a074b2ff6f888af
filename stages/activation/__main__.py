"""Stage `activation`: activation maps of the objects that a shard's captions name.

The file's facts list the targets that are left out for a constant map, and count the images without
any target; stage `pseudo_labels` checks the fraction of these images over all shards.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.activation.maps import in_batches, join_maps, map_nothing, map_targets
from stages.activation.params import ActivationParams
from stages.activation.targets import choose_captions, find_targets, make_finder
from stages.common.formats.captions import read_captions
from stages.common.formats.categories import ALL_SPLITS, read_categories
from stages.common.formats.images import EncodedImage, count_images, normalise_pixels, read_images
from stages.common.runtime.devices import prepare_device, send
from stages.common.runtime.params import (
    read_exactness,
    read_section,
    read_seed,
    shard_argument,
)
from stages.common.runtime.prefetch import prefetch
from stages.common.runtime.progress import track
from stages.common.runtime.seeding import make_deterministic
from stages.common.runtime.storage import write_tensors
from stages.models.vision_language.base import load_vlm
from stages.models.vision_language.inputs import resize_square

DOWNLOAD = Path("data/download")
MODEL = Path("data/vlm/model.safetensors")
OUTPUT = Path("data/activation")


def main(shard: str) -> None:
    """Run the stage for one shard."""
    params, seed = read_section("activation", ActivationParams), read_seed()
    make_deterministic(0, "activation", threads=1)
    device = prepare_device(read_exactness())
    model, tokenizer = load_vlm(MODEL)
    model.to(device)
    if params.fusion_layer >= model.fusion_depth - 1:
        raise ValueError(
            f"params.yaml: activation.fusion_layer: {params.fusion_layer} is too high: the last of"
            f" the {model.fusion_depth} fusion layers has no gradient at the words"
        )
    if params.image_size % model.patch_side:
        raise ValueError(
            f"params.yaml: activation.image_size: {params.image_size} is not a multiple of"
            f" {model.patch_side}, the side of the model's patches"
        )
    images = DOWNLOAD / f"images/train/{shard}.parquet"
    captions = read_captions(DOWNLOAD / f"captions/train/{shard}.json")
    finder = make_finder(read_categories(DOWNLOAD / "categories.json", ALL_SPLITS), params)
    total, cut_off = count_images(images), 0

    def prepare(batch: list[EncodedImage]) -> tuple[list[int], torch.Tensor]:
        squares = [resize_square(image.decode(), params.image_size) for image in batch]
        pixels = send(normalise_pixels(np.stack(squares)), device)
        return [image.image_id for image in batch], pixels

    batches = prefetch(prepare, in_batches(read_images(images), params.batch_size), ahead=2)
    parts = []
    for image_ids, pixels in track(batches, "activation", total, size=lambda pair: len(pair[0])):
        texts = [choose_captions(captions, image_id, params, seed) for image_id in image_ids]
        targets, classes, lost = find_targets(texts, finder, tokenizer)
        cut_off += lost
        if classes:  # images without a target are counted below
            parts.append(map_targets(model, pixels, targets, image_ids, classes, params))
    found = join_maps(parts or [map_nothing(model, params)])
    without = total - len(found.image_ids.unique())
    facts: dict[str, Any] = {"images": total, "images_without_target": without}
    if found.constant:
        facts["constant_maps"] = found.constant
    if cut_off:
        facts["mentions_cut_off"] = cut_off
        print(
            f"activation {shard}: {cut_off} mentions of classes do not count, because the model"
            f" reads only the first {tokenizer.max_tokens} tokens of a caption",
            file=sys.stderr,
        )
    print(
        f"activation {shard}: {len(found.image_ids)} targets; {without} of {total} images have"
        f" none; {len(found.constant)} left out for a constant map",
        file=sys.stderr,
    )
    write_tensors(
        OUTPUT / f"{shard}.safetensors",
        {
            "image_id": found.image_ids,
            "category_id": found.category_ids,
            "maps": found.maps,
            "matching_score": found.scores,
        },
        facts,
    )


if __name__ == "__main__":
    main(shard_argument())
