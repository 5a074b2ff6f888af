"""A predictor whose parts are tiny and untrained but fit together."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from stages.common.formats.categories import read_categories
from stages.common.runtime.storage import write_json
from stages.models.detection.detector import save
from stages.models.vision_language.name_embedding import load_name_embedder
from stages.models.vision_language.params import NameEmbeddingParams
from stages.models.vision_language.small_albef import save_small_albef
from tests.support.small_albef import small_albef
from tests.support.tiny_detector import INFERENCE, tiny_detector

PROMPTS = {
    "encoder": "vlm",
    "clip": {"folder": "clip"},
    "pooling": "name_tokens",
    "all_forms": False,
    "normalise": True,
    "templates": ["a {}", "a photo of a {}"],
}
CATEGORIES = [
    {"id": 3, "name": "cup", "split": "base", "forms": ["cup", "cups"]},
    {"id": 5, "name": "canine", "split": "novel", "forms": ["canine", "dog"]},
    {"id": 9, "name": "wall", "split": "excluded", "forms": ["wall"]},
]


def write_predictor(
    folder: Path,
    changes: dict | None = None,
    prompts: dict | None = None,
    categories: Sequence[dict] = CATEGORIES,
) -> Path:
    """Write the five files; `changes` apply to the detector's network, `prompts` to `PROMPTS`."""
    prompts = PROMPTS | (prompts or {})
    model, tokenizer = small_albef()
    write_json(folder / "categories.json", list(categories))
    (folder / "prompts.json").write_text(json.dumps(prompts))
    write_json(folder / "inference.json", INFERENCE)
    save_small_albef(folder / "text_encoder.safetensors", model, tokenizer)
    settings = NameEmbeddingParams.model_validate(prompts)
    embedder = load_name_embedder(settings, folder / "text_encoder.safetensors")
    embeddings = [
        embedder.embed_forms(embedder.known_forms(category, all_forms=False) or [category.name])
        for category in read_categories(folder / "categories.json")
    ]
    # With this seed the detector finds something in noise.
    detector = tiny_detector(embeddings=torch.stack(embeddings), seed=3, **(changes or {}))
    save(folder / "detector.safetensors", detector)
    return folder
