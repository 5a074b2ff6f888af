"""A detector, images and files so small that a training takes a second."""

from pathlib import Path

import cv2
import numpy as np
import torch
from ruamel.yaml import YAML

from stages.common.formats.images import EncodedImage, write_images
from stages.common.geometry.masks import encode_mask, mask_box
from stages.common.runtime.storage import write_json, write_tensors
from stages.detector.params import ANNOTATIONS, BOXES_ALONE
from stages.models.detection import detector
from stages.models.detection.detector import Detector, Prediction, build
from stages.models.detection.params import InferenceParams, network_params
from tests.support.images import png_image

NETWORK = {
    "backbone": {
        "kind": "trunk",
        "stem_width": 4,
        "width": 8,
        "residual_blocks": 0,
        "pyramid_width": 16,
    },
    "resize": {"shorter_side": 64, "longer_side": 64},
    "proposals": {
        "anchor_sizes": [12.0, 24.0, 40.0],
        "aspect_ratios": [1.0],
        "positive_iou": 0.6,
        "negative_iou": 0.3,
        "anchors_per_image": 32,
        "positive_fraction": 0.5,
        "nms_iou": 0.7,
        "pre_nms_top_n": 50,
        "post_nms_top_n": 20,
    },
    "box_head": {
        "pooler_resolution": 4,
        "canonical_side": 40.0,
        "hidden": 32,
        "positive_iou": 0.5,
        "regions_per_image": 12,
        "positive_fraction": 0.5,
        "smooth_l1_beta": 1 / 9,
    },
    "classifier": {"similarity": "cosine", "temperature": 0.1, "background": "learned"},
    "mask_head": {"kind": "convolutions", "pooler_resolution": 7, "channels": 8, "layers": 1},
}
INFERENCE = {
    "pre_nms_top_n": 50,
    "post_nms_top_n": 10,
    "score_threshold": 0.05,
    "nms_iou": 0.5,
    "detections_per_image": 5,
}
# The mask head of FCOS-MO, and of Mask R-CNN where that has one.
HOURGLASS = {
    "depth": 10,
    "channels": 8,
    "crop_side": 16,
    "pixel_channels": 8,
    "instance_channels": 8,
    "objects_per_image": 8,
}
WITH_HOURGLASS = {"mask_head": {"kind": "hourglass", **HOURGLASS}}
# What changes in NETWORK with another backbone.
RESNETS = {
    "resnet50_fpn": {
        "backbone": {
            "kind": "resnet50_fpn",
            "pyramid_width": 16,
            "frozen_stages": 2,
            "extra_levels": "pool",
        },
        "proposals": NETWORK["proposals"] | {"anchor_sizes": [8.0, 16.0, 24.0, 32.0, 48.0]},
    },
    "resnet50_c4": {
        "backbone": {"kind": "resnet50_c4", "frozen_stages": 2},
        "proposals": NETWORK["proposals"] | {"anchor_sizes": [16.0, 32.0, 48.0]},
        "mask_head": {"kind": "convolutions", "pooler_resolution": 4, "channels": 8, "layers": 0},
    },
}
TRAINING = {
    "steps": 4,
    "batch_size": 2,
    "optimizer": {"kind": "adamw"},
    "schedule": {"kind": "cosine"},
    "learning_rate": 0.003,
    "bias_rate_factor": 1.0,
    "warmup_steps": 2,
    "weight_decay": 0.01,
    "gradient_clip": 5.0,
    "background_weight": 0.5,
    "frozen": [],
    "flip": True,
    "colour_jitter": 0.1,
    "precision": "fp32",
    "loss_weights": {
        "objectness": 1.0,
        "proposal_box": 1.0,
        "classification": 1.0,
        "box": 2.0,
        "mask": 1.0,
    },
    "region_losses": [],
}
EVERYTHING = {"class": 1.0, "box": 1.0, "mask": 1.0}


def supervision(name: str, **changes) -> dict:
    """Return the params of a supervision with one source."""
    source = {"name": name, "fraction": 1.0, "teaches": EVERYTHING, "weigh_by_score": False}
    source |= {"box_grids": [], "negatives": "all"}
    return {"draw": "together", "sources": [source | changes]}


def learned_from(*names: str, **changes) -> dict:
    """Return the params of a detector's supervision with these sources, in equal parts."""
    sources = []
    for name in names:
        (source,) = supervision(name, fraction=1 / len(names))["sources"]
        path, classes = ANNOTATIONS[name]
        source |= {"annotations": path, "classes": classes[-1]}
        if name in BOXES_ALONE:
            source["teaches"] = {"class": 1.0, "box": 1.0}
        sources.append(source | changes)
    return {"draw": "together", "sources": sources}


FINETUNE = {
    "supervision": supervision("ground_truth"),
    "vocabulary": "base",
    "unlabelled": "background",
    "detections": INFERENCE | {"score_threshold": 0.5},
    "training": {**TRAINING, "frozen": ["classifier"]},
}
CATEGORIES = [
    {"id": 3, "name": "disc", "split": "base", "forms": ["disc"]},
    {"id": 5, "name": "box", "split": "novel", "forms": ["box"]},
    {"id": 9, "name": "line", "split": "excluded", "forms": ["line"]},
]
EMBEDDINGS = torch.eye(2, 8)


def tiny_detector(
    architecture: str = "mask_rcnn",
    embeddings: torch.Tensor = EMBEDDINGS,
    seed: int = 0,
    **changes: dict,
) -> Detector:
    torch.manual_seed(seed)
    params = network_params(architecture).model_validate(NETWORK | changes)
    return build(architecture, params, embeddings)


def predict(
    model: Detector, images: list[np.ndarray], vocabularies: list[list[int]], **changes: float
) -> list[list[Prediction]]:
    """Detect as `INFERENCE` says, with changes."""
    inference = InferenceParams.model_validate(INFERENCE | changes)
    return detector.predict(model, images, vocabularies, inference)


def draw(image_id: int, side: int = 64) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Return an image with a red disc and a blue box, and their masks by category id."""
    random = np.random.default_rng(image_id)
    image = random.integers(90, 130, (side, side, 3), np.uint8)
    x, y, radius = random.integers(14, side // 2 - 8), random.integers(14, side - 14), 9
    disc = cv2.circle(np.zeros((side, side), np.uint8), (int(x), int(y)), radius, 1, -1) > 0
    box = np.zeros((side, side), bool)
    top = random.integers(2, side - 26)
    box[top : top + 20, side - 22 : side - 6] = True
    image[disc], image[box] = (220, 30, 30), (30, 30, 220)
    return image, {3: disc, 5: box}


def annotate(image_ids: list[int]) -> dict:
    """Return the ground truth of the images in COCO's format."""
    annotations = []
    for image_id in image_ids:
        for category_id, mask in draw(image_id)[1].items():
            x0, y0, x1, y1 = mask_box(mask).tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": encode_mask(mask),
                }
            )
    images = [{"id": k, "file_name": f"{k}.png", "height": 64, "width": 64} for k in image_ids]
    return {"images": images, "annotations": annotations, "categories": []}


def make_image(image_id: int) -> EncodedImage:
    return png_image(image_id, draw(image_id)[0][:, :, ::-1])


def make_repository(
    root: Path,
    training: dict | None = None,
    start: dict | None = None,
    frozen_later: str = "classifier",
) -> None:
    """Write params.yaml and everything that the stages detector and finetune read."""
    training = TRAINING | (training or {})
    from_vlm = {"init": "vlm", "imagenet": {"weights": None, "sha256": None}, "network": NETWORK}
    detector = {"architecture": "mask_rcnn", **from_vlm, **(start or {}), "training": training}
    detector |= {"supervision": learned_from("pseudo_masks"), "region_head": None}
    finetune = FINETUNE | {"training": training | {"frozen": [frozen_later]}}
    params = {"seed": 1, "shards": [0, 1], "deterministic": "device"}
    params |= {"detector": detector, "finetune": finetune}
    YAML(typ="safe").dump(params, root / "params.yaml")
    download = root / "data/download"
    write_json(download / "categories.json", CATEGORIES)
    for shard, image_ids in enumerate(([1, 2, 3], [4, 5])):
        images = map(make_image, image_ids)
        write_images(download / f"images/train/{shard}.parquet", images)
    write_json(download / "ground_truth/train.json", annotate([1, 2, 3, 4, 5]))
    write_json(root / "data/pseudo_labels/pseudo_annotations.json", annotate([1, 2, 4, 5]))
    write_json(root / "data/supervision/pseudo_masks.json", annotate([1, 2, 4, 5]))
    write_tensors(root / "data/vocabulary/embeddings.safetensors", {"embeddings": EMBEDDINGS})
    trunk = tiny_detector().backbone.trunk.state_dict()
    weights = {f"trunk.{name}": value for name, value in trunk.items()}
    write_tensors(root / "data/vlm/model.safetensors", weights)


def change_params(section: str, training: dict | None = None, **changes) -> None:
    """Change keys of a section of params.yaml, and of its training, in the working directory."""
    yaml, path = YAML(typ="safe"), Path("params.yaml")
    params = yaml.load(path)
    params[section] |= changes
    params[section]["training"] |= training or {}
    yaml.dump(params, path)
