"""The activation maps of the targets in a batch of images, and those of a whole shard.

A constant map does not locate its object, so its target is left out and listed.

Shape legend: B images, T targets (image, class), G masked rounds, h w patches, H W pixels.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float

from stages.activation.params import ActivationParams
from stages.activation.rounds import Targets, iterate_masking
from stages.models.vision_language.base import VisionLanguageModel

Item = TypeVar("Item")


class TargetMaps(NamedTuple):
    """T targets and their maps, on the CPU."""

    image_ids: torch.Tensor  # int64 (T,)
    category_ids: torch.Tensor  # int64 (T,)
    maps: torch.Tensor  # float16 (T, G + 1, h, w)
    scores: torch.Tensor  # float32 (T, G + 1), matching logits
    constant: list[dict[str, int]]  # targets left out, as {"image_id", "category_id"}


def map_targets(
    model: VisionLanguageModel,
    images: Float[torch.Tensor, "B 3 H W"],
    targets: Targets,
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    params: ActivationParams,
) -> TargetMaps:
    """Compute the maps of the targets in a batch.

    Args:
        model: in evaluation mode.
        images: normalised pixels.
        targets: from `find_targets`, on the CPU.
        image_ids: of the B images.
        category_ids: of the T targets.
        params: section `activation` of params.yaml.
    """
    maps, scores = iterate_masking(model, images, targets.to(images.device), params)
    maps, scores = maps.half().cpu(), scores.cpu()
    kept = has_contrast(maps)
    images_of = torch.tensor(image_ids, dtype=torch.int64)[targets.image]
    classes = torch.tensor(category_ids, dtype=torch.int64)
    left_out = zip(images_of[~kept].tolist(), classes[~kept].tolist(), strict=True)
    constant = [{"image_id": image, "category_id": category} for image, category in left_out]
    return TargetMaps(images_of[kept], classes[kept], maps[kept], scores[kept], constant)


def map_nothing(model: VisionLanguageModel, params: ActivationParams) -> TargetMaps:
    """Return the maps of no target, T = 0, in the types and sizes of all others."""
    side = params.image_size // model.patch_side
    no_ids = torch.zeros(0, dtype=torch.int64)
    maps = torch.zeros(0, params.rounds + 1, side, side, dtype=torch.float16)
    return TargetMaps(no_ids, no_ids, maps, torch.zeros(0, params.rounds + 1), [])


def join_maps(parts: Sequence[TargetMaps]) -> TargetMaps:
    """Return the targets of all parts, at least one, in order."""
    *columns, constant = zip(*parts, strict=True)
    image_ids, category_ids, maps, scores = map(torch.cat, columns)
    left_out = [target for own in constant for target in own]
    return TargetMaps(image_ids, category_ids, maps, scores, left_out)


def has_contrast(maps: Float[torch.Tensor, "T G h w"]) -> Bool[torch.Tensor, " T"]:
    """Return for each target whether neither its first nor its last map is constant.

    Later stages use only these two maps. A map with NaN counts as constant.

    Args:
        maps: as stored; entry g of G+1 is the union of rounds 0…g.
    """
    used = maps[:, [0, -1]].flatten(2)
    return (used.amax(2) > used.amin(2)).all(1)


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in lists of `size`; the last may be shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
