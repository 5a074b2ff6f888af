"""`main` of a training for tests: of the tiny detector, in however many processes run it."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from stages.common.geometry.masks import decode_mask, encode_mask
from stages.common.runtime.curves import Curve
from stages.common.runtime.processes import own_places, process_index
from stages.models.detection.params import TrainingParams
from stages.models.detection.samples import Annotations, LabelledImage, label_images
from stages.models.detection.supervision import Supervision
from stages.models.detection.training import train_detector
from tests.support.images import png_image
from tests.support.tiny_detector import TRAINING, annotate, make_image, tiny_detector

IMAGE_IDS = [1, 2, 3, 4, 5]
NARROW = 48  # columns of the odd images: their padding depends on the rest of the batch


def labelled_images() -> list[LabelledImage]:
    """Return five images, each with its disc, which lies in the left half."""
    discs = [a for a in annotate(IMAGE_IDS)["annotations"] if a["category_id"] == 3]
    objects = {a["image_id"]: [a] for a in discs}
    images = label_images(
        map(make_image, IMAGE_IDS), Annotations(objects, {}), {3: 1}, Path("labels.json")
    )
    return [narrow(entry) if entry.image.image_id % 2 else entry for entry in images]


def narrow(entry: LabelledImage) -> LabelledImage:
    pixels = entry.image.decode()[:, :NARROW]
    (mask,) = entry.segmentations
    cut = encode_mask(decode_mask(mask, (64, 64))[:, :NARROW])
    small = png_image(entry.image.image_id, pixels[:, :, ::-1])
    return replace(entry, image=small, segmentations=[cut])


def train(frozen: list[str]) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """Return the losses of every step and the weights after the last."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    changes = {"steps": 6, "batch_size": 5, "frozen": frozen}
    model, curve = tiny_detector(), Curve(every=1)
    params = TrainingParams.model_validate(TRAINING | changes)
    train_detector(model, Supervision.of(labelled_images()), params, 7, curve)
    return curve.state()["rows"], model.state_dict()


def main() -> None:
    """Train and write losses.json and weights.

    With `fail`, the first process fails by a fault of its own, with `refuse` all refuse the batch.
    """
    folder, *more = sys.argv[1:]
    if more == ["refuse"]:
        own_places(1)
    if more == ["fail"] and process_index() == 0:
        raise ValueError("labels.json: no object to learn from")
    rows, weights = train([])
    if process_index() == 0:
        Path(folder, "losses.json").write_text(json.dumps(rows))
        torch.save(weights, Path(folder, "weights.pt"))
