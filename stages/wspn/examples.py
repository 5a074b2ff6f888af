"""Training examples: proposals of one image, their features, and the image's labels.

Features are computed once and kept as 16-bit floats: about 0.2 MB an image of the small
network, which is why the number of images and of their proposals has a limit in params.yaml.

Shape legend: R proposals of one image, C base classes, F features.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from stages.common.formats.captions import MentionFinder
from stages.common.formats.categories import Category
from stages.common.formats.images import EncodedImage
from stages.common.runtime.seeding import derive_seed, numpy_generator
from stages.common.runtime.storage import read_json
from stages.models.proposals.language import LanguageWspn
from stages.models.proposals.views import network_input


class ImageExample(NamedTuple):
    """One image; boxes are in the frame of the network's input."""

    image_id: int
    labels: torch.Tensor  # float32 (C,), 1 if the image is labelled with it
    boxes_xyxy: np.ndarray  # float32 (R, 4)
    appearance: torch.Tensor  # float16 (R, F)
    evidence: torch.Tensor  # float16 (R, F)


def image_labels(
    captions: Mapping[int, Sequence[str]],
    categories: Sequence[Category],
    labelled_ids: Sequence[int],
) -> dict[int, np.ndarray]:
    """Return, per image, float32 (C,) that is 1 for each labelled class its captions name.

    All `categories` are looked for, so that a "hot dog" is no "dog"; those of `labelled_ids` are
    kept, in that order.
    """
    finder = MentionFinder(categories)
    place = {category_id: index for index, category_id in enumerate(labelled_ids)}
    labels = {}
    for image_id, texts in captions.items():
        row = np.zeros(len(place), np.float32)
        row[[place[category] for category in finder.classes(texts) if category in place]] = 1
        labels[image_id] = row
    return labels


def annotated_labels(paths: Sequence[Path], labelled_ids: Sequence[int]) -> dict[int, np.ndarray]:
    """Return, per image, float32 (C,) that is 1 for each labelled class people found in it.

    Args:
        paths: files of data/download/annotations, which have base classes alone.
        labelled_ids: the classes, in order.

    Raises:
        ValueError: nobody has annotated the images.
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


def choose_images(image_ids: Iterable[int], max_images: int, seed: int) -> set[int]:
    """Return at most `max_images` of the images, at random, whatever order they come in."""
    return set(
        sorted(image_ids, key=lambda image_id: derive_seed(seed, "wspn picture", image_id))[
            :max_images
        ]
    )


def make_examples(
    model: LanguageWspn,
    images: Iterable[EncodedImage],
    proposals: Mapping[int, np.ndarray],
    labels: Mapping[int, np.ndarray],
    proposals_per_image: int,
    seed: int,
) -> Iterator[ImageExample]:
    """Yield the example of each image.

    Args:
        model: with the language's trunk; only its frozen part is used.
        images: to train with.
        proposals: float32 (R, 4) per image, in its own pixels.
        labels: (C,) per image; an image without captions has none of the classes.
        proposals_per_image: more are thinned out at random.
        seed: the experiment's.

    Raises:
        ValueError: an image without proposals.
    """
    nothing = np.zeros(len(model.config.category_ids), np.float32)
    for image in images:
        boxes = proposals.get(image.image_id)
        if boxes is None:
            raise ValueError(
                f"image {image.image_id} ({image.file_name}) has no row in data/proposals;"
                " rerun `proposals`"
            )
        boxes = thin_out(boxes, proposals_per_image, seed, image.image_id)
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


def thin_out(boxes_xyxy: np.ndarray, limit: int, seed: int, image_id: int) -> np.ndarray:
    """Return at most `limit` of an image's proposals (R, 4), at random, in their order."""
    if len(boxes_xyxy) <= limit:
        return boxes_xyxy
    generator = numpy_generator(seed, "wspn proposals", image_id)
    return boxes_xyxy[np.sort(generator.permutation(len(boxes_xyxy))[:limit])]
