"""Training examples for the small network: an image's proposals, their features, and its labels.

Features are computed once and kept as float16: 1.7 kB per proposal, about 0.2 MB per image of the
default experiment. params.yaml therefore limits the number of images and of their proposals.

Shape legend: R proposals of one image, C labelled classes, F features.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32

from stages.common.formats.captions import MentionFinder
from stages.common.formats.categories import Category
from stages.common.formats.images import EncodedImage
from stages.common.runtime.seeding import derive_seed, numpy_generator
from stages.common.runtime.storage import read_json
from stages.models.proposals.language import LanguageWspn
from stages.models.proposals.views import network_input


class ImageExample(NamedTuple):
    """One image; boxes are in pixels of the network's input."""

    image_id: int
    labels: torch.Tensor  # float32 (C,), 1 if the image is labelled with the class
    boxes_xyxy: np.ndarray  # float32 (R, 4)
    appearance: torch.Tensor  # float16 (R, F)
    evidence: torch.Tensor  # float16 (R, F)


def image_labels(
    captions: Mapping[int, Sequence[str]],
    categories: Sequence[Category],
    labelled_ids: Sequence[int],
) -> dict[int, Float32[np.ndarray, " C"]]:
    """Return per image 1 for each class of `labelled_ids` that its captions name.

    All `categories` are searched for, so that "hot dog" does not count as "dog".
    """
    finder = MentionFinder(categories)
    place = {category_id: index for index, category_id in enumerate(labelled_ids)}
    labels = {}
    for image_id, texts in captions.items():
        row = np.zeros(len(place), np.float32)
        row[[place[category] for category in finder.classes(texts) if category in place]] = 1
        labels[image_id] = row
    return labels


def annotated_labels(
    paths: Sequence[Path], labelled_ids: Sequence[int]
) -> dict[int, Float32[np.ndarray, " C"]]:
    """Return per image 1 for each labelled class that annotators found in it.

    Args:
        paths: files of data/download/annotations, which list base classes only.
        labelled_ids: the C classes, in order.

    Raises:
        ValueError: the files have no entry.
    """
    entries = [entry for path in paths for entry in read_json(path)]
    if not entries:
        raise ValueError(
            f"{paths[0].parent}: nobody has annotated these images; set params.yaml:"
            " wspn.image_labels to captions"
        )
    ids = np.array(labelled_ids)
    return {
        entry["image_id"]: np.isin(ids, entry["category_ids"]).astype(np.float32)
        for entry in entries
    }


def require_labels(labels: Iterable[np.ndarray | torch.Tensor]) -> None:
    """Raise ValueError if no image has a label; `labels` are (C,) per image."""
    if not any(row.any() for row in labels):
        raise ValueError(
            "no training image has an image label to train the proposal network with; if captions"
            " name the classes, check `forms` in data/download/categories.json"
        )


def choose_images(image_ids: Iterable[int], max_images: int, seed: int) -> set[int]:
    """Return at most `max_images` random images; their order does not change the choice."""
    return set(
        sorted(image_ids, key=lambda image_id: derive_seed(seed, "wspn picture", image_id))[
            :max_images
        ]
    )


def make_examples(
    model: LanguageWspn,
    images: Iterable[EncodedImage],
    proposals: Mapping[int, Float32[np.ndarray, "_ 4"]],
    labels: Mapping[int, Float32[np.ndarray, " C"]],
    proposals_per_image: int,
    seed: int,
) -> Iterator[ImageExample]:
    """Yield the example of each image.

    Args:
        model: the network after `take_language`; only its frozen part is used.
        images: the training images.
        proposals: of each image, in its pixels.
        labels: of each image; an image that is missing here has no label.
        proposals_per_image: further proposals are dropped at random.
        seed: the experiment's seed.

    Raises:
        ValueError: an image has no proposals.
    """
    nothing = np.zeros(len(model.config.category_ids), np.float32)
    for image in images:
        boxes = proposals.get(image.image_id)
        if boxes is None:
            raise ValueError(
                f"image {image.image_id} ({image.file_name}) has no row in data/proposals;"
                " rerun `proposals`"
            )
        boxes = limit_proposals(boxes, proposals_per_image, seed, image.image_id)
        pixels, scale = network_input(image.decode(), model.config.image_side)
        maps = model.feature_maps(pixels)
        scaled = torch.from_numpy(boxes * scale).to(model.device)
        yield ImageExample(
            image.image_id,
            torch.from_numpy(labels.get(image.image_id, nothing)),
            scaled.cpu().numpy(),
            model.appearance(maps, scaled).half().cpu(),
            model.evidence(maps, scaled).half().cpu(),
        )


def limit_proposals(
    boxes_xyxy: Float[np.ndarray, "R 4"], limit: int, seed: int, image_id: int
) -> Float[np.ndarray, "_ 4"]:
    """Return at most `limit` random proposals of an image, in their original order."""
    if len(boxes_xyxy) <= limit:
        return boxes_xyxy
    generator = numpy_generator(seed, "wspn proposals", image_id)
    return boxes_xyxy[np.sort(generator.permutation(len(boxes_xyxy))[:limit])]
