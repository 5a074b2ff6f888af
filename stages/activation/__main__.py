"""Stage `activation`: activation maps of the objects that a shard's captions name.

A constant map does not locate its object, so its target is left out. The file's facts list such
targets and count the images without any target; stage `pseudo_labels` checks the fraction of these
images over all shards.
"""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float

from stages.activation.params import ActivationParams
from stages.activation.rounds import iterate_masking
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
from stages.models.vision_language.base import VisionLanguageModel, load_vlm

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
    images = DOWNLOAD / f"images/train/{shard}.parquet"
    captions = read_captions(DOWNLOAD / f"captions/train/{shard}.json")
    finder = make_finder(read_categories(DOWNLOAD / "categories.json", ALL_SPLITS), params)

    image_ids, category_ids, maps, scores = [], [], [], []
    constant: list[dict] = []
    cut_off = 0
    total = count_images(images)
    batches = _batches(read_images(images), params.batch_size)

    def prepare(batch: list[EncodedImage]) -> tuple[list[EncodedImage], torch.Tensor]:
        squares = [_square(image.decode(), params.image_size) for image in batch]
        return batch, send(normalise_pixels(np.stack(squares)), device)

    prepared = prefetch(prepare, batches, ahead=2)
    for batch, pixels in track(prepared, "activation", total, size=lambda pair: len(pair[0])):
        targets, classes, lost = find_targets(
            [choose_captions(captions, image.image_id, params, seed) for image in batch],
            finder,
            tokenizer,
        )
        cut_off += lost
        if not classes:
            continue  # counted below: images without a target
        batch_maps, batch_scores = iterate_masking(model, pixels, targets.to(device), params)
        batch_maps = batch_maps.half().cpu()
        telling = has_contrast(batch_maps)
        for row, category_id, kept in zip(
            targets.image.tolist(), classes, telling.tolist(), strict=True
        ):
            image_id = batch[row].image_id
            if not kept:
                constant.append({"image_id": image_id, "category_id": category_id})
                continue
            image_ids.append(image_id)
            category_ids.append(category_id)
        maps.append(batch_maps[telling])
        scores.append(batch_scores.cpu()[telling])
    if not maps:
        maps.append(_no_maps(model, params, device))
        scores.append(torch.zeros(0, params.rounds + 1))
    facts: dict[str, Any] = {"images": total, "images_without_target": total - len(set(image_ids))}
    if constant:
        facts["constant_maps"] = constant
    if cut_off:
        facts["mentions_cut_off"] = cut_off
        print(
            f"activation {shard}: {cut_off} mentions of classes do not count, because the model"
            f" reads only the first {tokenizer.max_tokens} tokens of a caption",
            file=sys.stderr,
        )
    print(
        f"activation {shard}: {len(image_ids)} targets; {facts['images_without_target']} of"
        f" {total} images have none; {len(constant)} left out for a constant map",
        file=sys.stderr,
    )
    write_tensors(
        OUTPUT / f"{shard}.safetensors",
        {
            "image_id": torch.tensor(image_ids, dtype=torch.int64),
            "category_id": torch.tensor(category_ids, dtype=torch.int64),
            "maps": torch.cat(maps),
            "matching_score": torch.cat(scores),
        },
        facts,
    )


def has_contrast(maps: Float[torch.Tensor, "T G h w"]) -> Bool[torch.Tensor, " T"]:
    """Return for each target whether neither its first nor its last map is constant.

    Later stages use only these two maps. A map with NaN counts as constant.

    Args:
        maps: as stored; entry g of G+1 is the union of rounds 0…g.
    """
    used = maps[:, [0, -1]].flatten(2)
    return (used.amax(2) > used.amin(2)).all(1)


@torch.no_grad()
def _no_maps(
    model: VisionLanguageModel, params: ActivationParams, device: torch.device
) -> torch.Tensor:
    """Return the maps float16 (0, G+1, h, w) of a shard without targets."""
    blank = torch.zeros(1, 3, params.image_size, params.image_size, device=device)
    context = model.fusion_context(model.encode_image(blank))
    side = math.isqrt(context.shape[1] - model.leading_context)
    return torch.zeros(0, params.rounds + 1, side, side, dtype=torch.float16)


def _square(image: np.ndarray, size: int) -> np.ndarray:
    """Resize to (size, size, 3) without keeping the aspect ratio, as ALBEF does."""
    if image.shape[:2] == (size, size):
        return image
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def _batches(images: Iterator[EncodedImage], size: int) -> Iterator[list[EncodedImage]]:
    batch = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


if __name__ == "__main__":
    main(shard_argument())
