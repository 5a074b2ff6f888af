"""Generated inputs of real size: images of 640 × 480, random weights, random boxes."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from stages.activation.rounds import Targets
from stages.common.formats.images import EncodedImage
from stages.common.geometry.masks import encode_mask
from stages.common.runtime.params import read_params
from stages.common.runtime.seeding import numpy_generator
from stages.download.sources.scenes.draw import draw_scene, scene_recipe
from stages.models.proposals.language import LanguageWspn, LanguageWspnConfig
from stages.models.vision_language.albef import Albef, AlbefConfig
from stages.models.vision_language.tokenizer import CaptionTokenizer, build_vocabulary

PARAMS = Path(__file__).parents[1] / "params.yaml"
HEIGHT, WIDTH = 480, 640
CAPTION = "a dog and a red cup near the wall of an old house with two windows"


def section(name: str) -> dict[str, Any]:
    """Return a section of the default params.yaml."""
    return read_params(PARAMS)[name]


def images(count: int) -> list[EncodedImage]:
    """Return scenes cut to 640 × 480, as JPEG."""
    found = []
    for number in range(count):
        scene = draw_scene(scene_recipe(WIDTH), numpy_generator(0, "benchmark", number))
        image = scene.image[:HEIGHT, :, ::-1]
        _, encoded = cv2.imencode(".jpg", image)
        found.append(EncodedImage(number, f"{number}.jpg", HEIGHT, WIDTH, encoded.tobytes()))
    return found


def boxes(count: int, seed: int = 0) -> np.ndarray:
    """Return float32 (count, 4) corners in an image, of 16 to 320 pixels a side."""
    generator = np.random.default_rng(seed)
    sides = generator.uniform(16, 320, (count, 2))
    corners = generator.uniform(0, 1, (count, 2)) * (np.array([WIDTH, HEIGHT]) - sides)
    return np.concatenate([corners, corners + sides], axis=1).astype(np.float32)


def maps(count: int, cells_hw: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """Return smooth activation maps float32 (count, *cells_hw) in [0, 1] of an image."""
    rows, columns = np.mgrid[: cells_hw[0], : cells_hw[1]].astype(np.float32)
    rows = (rows + 0.5) * (HEIGHT / cells_hw[0])
    columns = (columns + 0.5) * (WIDTH / cells_hw[1])
    middles = boxes(count, seed=1).reshape(-1, 2, 2).mean(1)
    return np.stack([np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 9000) for x, y in middles])


def base_albef() -> tuple[Albef, CaptionTokenizer]:
    """Return ALBEF at its official size with random weights, for images of 256 pixels."""
    torch.manual_seed(0)
    config = AlbefConfig(
        vocabulary_size=30522,
        text_positions=512,
        patch_side=16,
        table_side=16,
        width=768,
        heads=12,
        hidden=3072,
        image_layers=12,
        text_layers=6,
        fusion_layers=6,
        projection=256,
    )
    return Albef(config).eval(), CaptionTokenizer(build_vocabulary([CAPTION], 1), 30)


def captioned(tokenizer: CaptionTokenizer, images: int, captions: int, objects: int) -> Targets:
    """Return targets: every image has `captions` captions, which name `objects` objects."""
    tokens = tokenizer.encode([CAPTION] * captions).expand(images, -1, -1)
    weights = torch.zeros(images * objects, captions, tokens.shape[2])
    for number in range(images * objects):
        weights[number, :, 2 + number % objects] = 1.0
    return Targets(tokens, torch.arange(images).repeat_interleave(objects), weights)


def wspn(image_side: int) -> LanguageWspn:
    """Return a proposal network with random weights that sees images at `image_side`."""
    vlm, settings = section("vlm")["model"], section("wspn")["model"]
    return LanguageWspn(
        LanguageWspnConfig(
            category_ids=list(range(1, 49)),
            stem_width=vlm["stem_width"],
            width=vlm["width"],
            residual_blocks=vlm["residual_blocks"],
            num_words=300,
            **{k: v for k, v in settings.items() if k != "backbone"} | {"image_side": image_side},
        )
    ).eval()


def mask_entries(masks: np.ndarray) -> list[dict[str, Any]]:
    """Return masks bool (N, H, W) as stage `pseudo_masks` writes them, each with another score."""
    return [
        {
            "image_id": number,
            "category_id": 1,
            "bbox": [0.0, 0.0, 1.0, 1.0],
            "score": number / len(masks),
            "segmentation": encode_mask(mask),
        }
        for number, mask in enumerate(masks)
    ]
