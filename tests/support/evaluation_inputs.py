"""Objects and detections that are boxes of whole pixels, and the stage `evaluation` on them."""

import sys
from functools import partial

import numpy as np
import torch

from stages.common.formats.categories import Category
from stages.common.formats.images import write_images
from stages.common.runtime.storage import write_json
from stages.evaluation.params import EvaluationParams
from stages.models.detection import detector
from stages.models.detection.detector import Prediction
from stages.models.detection.params import InferenceParams
from tests.support.boxes import box_annotation, box_mask
from tests.support.images import png_image
from tests.support.run_module import run_module
from tests.support.tiny_detector import INFERENCE

CUP, HAT, FISH, CAR, ROCK = 1, 2, 4, 5, 9
CATEGORIES = [
    Category(CUP, "cup", "base", ("cup",)),
    Category(HAT, "hat", "base", ("hat",)),
    Category(FISH, "fish", "novel", ("fish",)),
    Category(CAR, "car", "novel", ("car",)),
]
INDEX = {category.id: k for k, category in enumerate(CATEGORIES)}
HW = (40, 40)
EVALUATION_PARAMS = EvaluationParams(
    split="test",
    metric="coco",
    expand_detections=True,
    max_detections=100,
    training_images=3,
    montage_images=2,
    montage_min_score=0.4,
    inference=InferenceParams.model_validate(INFERENCE),
)


mask_of = partial(box_mask, image_hw=HW)


def annotation(image_id, category_id, box_xyxy, crowd=0):
    return box_annotation(category_id, box_xyxy, HW, image_id=image_id, iscrowd=crowd)


def truth_of(annotations, num_images=3):
    images = [
        {"id": i, "file_name": f"{i}.png", "height": HW[0], "width": HW[1]}
        for i in range(1, num_images + 1)
    ]
    return {
        "images": images,
        "annotations": [{**a, "id": number} for number, a in enumerate(annotations, 1)],
        "categories": [
            *({"id": c.id, "name": c.name, "split": c.split} for c in CATEGORIES),
            {"id": ROCK, "name": "rock", "split": "excluded"},
        ],
    }


def coco_result(*args, score):
    made = annotation(*args)
    return {k: made[k] for k in ("image_id", "category_id", "bbox", "segmentation")} | {
        "score": score
    }


def make_prediction(entries):
    """Return a Prediction of (class id, box, score) entries."""
    return Prediction(
        np.array([box for _, box, _ in entries], np.float32).reshape(-1, 4),
        np.array([INDEX[category_id] for category_id, *_ in entries], np.int64),
        np.array([score for *_, score in entries], np.float32),
        np.array([mask_of(box) for _, box, _ in entries], bool).reshape(-1, *HW),
    )


def image_of(image_id):
    """Return an image whose pixels tell its id."""
    return png_image(image_id, np.full((*HW, 3), image_id, np.uint8))


def predictor(entries_by_image):
    """Return a detector that knows its answers; it keeps those in the vocabulary."""

    def predict(images, vocabularies):
        return [
            [
                make_prediction(
                    [
                        e
                        for e in entries_by_image.get(int(image[0, 0, 0]), [])
                        if INDEX[e[0]] in allowed
                    ]
                )
                for image in images
            ]
            for allowed in vocabularies
        ]

    return predict


def small_world():
    """Image 1 has a cup and a fish, 2 a fish, 3 a rock only."""
    return truth_of(
        [
            annotation(1, CUP, (0, 0, 10, 10)),
            annotation(1, FISH, (20, 20, 30, 30)),
            annotation(2, FISH, (5, 5, 15, 15)),
            annotation(3, ROCK, (5, 5, 15, 15)),
        ]
    )


def write_evaluation_inputs(folder, monkeypatch):
    download, truth = folder / "data/download", small_world()
    entries = [
        {"id": c.id, "name": c.name, "split": c.split, "forms": [*c.forms]} for c in CATEGORIES
    ]
    rock = {"id": ROCK, "name": "rock", "split": "excluded", "forms": ["rock"]}
    write_json(download / "categories.json", [*entries, rock])
    write_images(download / "images/test.parquet", map(image_of, (1, 2, 3)))
    write_images(download / "images/train/0.parquet", map(image_of, (1, 2)))
    write_json(download / "ground_truth/test.json", truth)
    write_json(download / "ground_truth/train.json", truth)
    write_json(folder / "data/supervision/pseudo_masks.json", truth)
    values = ", ".join(f"{key}: {value}" for key, value in EVALUATION_PARAMS.model_dump().items())
    (folder / "params.yaml").write_text(
        f"seed: 0\nshards: [0]\ndeterministic: device\nevaluation: {{{values}}}\n"
    )
    known = {
        1: [(CUP, (0, 0, 10, 9), 0.9), (FISH, (20, 20, 30, 29), 0.8), (CAR, (0, 0, 5, 5), 0.1)],
        2: [(FISH, (5, 6, 15, 15), 0.7)],
    }
    monkeypatch.setattr(detector, "load", lambda path: torch.nn.Identity())
    monkeypatch.setattr(
        detector,
        "predict",
        lambda model, images, lists, inference: predictor(known)(images, lists),
    )
    monkeypatch.chdir(folder)


def run_evaluation(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["stages.evaluation", *arguments])
    run_module("stages.evaluation")
