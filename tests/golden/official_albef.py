"""Checkpoints in the form of the official ALBEF.pth, with weights by a rule of our own.

The rule is integer arithmetic, so that no version of NumPy or torch changes a weight: number k of
the tensor called `name` is splitmix64 of (hash of the name + k), as a fraction of [-1, 1), scaled.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

LAYERS, FUSION = 12, 6
HEAD_WIDTH = 64
WORDS_FIXED = 5  # the special tokens come first


@dataclass(frozen=True)
class Sizes:
    """Sizes that may be smaller than the official ones; the numbers of layers are never."""

    width: int = 128
    words: int = 50
    text_positions: int = 32
    table_side: int = 4
    projection: int = 16


FULL = Sizes(width=768, words=30522, text_positions=512, table_side=16, projection=256)


def by_rule(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return float32 numbers in [-1, 1) that depend on name, index and nothing else."""
    first = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
    with np.errstate(over="ignore"):
        x = np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x += np.uint64(first)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    fractions = (x >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - np.float32(1)
    return torch.from_numpy(fractions.reshape(shape))


def shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight that a matching score needs, by its official name."""
    width, found = sizes.width, {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def norm(name: str) -> None:
        found[f"{name}.weight"] = found[f"{name}.bias"] = (width,)

    image = "visual_encoder"
    found[f"{image}.cls_token"] = (1, 1, width)
    found[f"{image}.pos_embed"] = (1, 1 + sizes.table_side**2, width)
    found[f"{image}.patch_embed.proj.weight"] = (width, 3, 16, 16)
    found[f"{image}.patch_embed.proj.bias"] = (width,)
    for index in range(LAYERS):
        block = f"{image}.blocks.{index}"
        norm(f"{block}.norm1")
        linear(f"{block}.attn.qkv", width, 3 * width)
        linear(f"{block}.attn.proj", width, width)
        norm(f"{block}.norm2")
        linear(f"{block}.mlp.fc1", width, 4 * width)
        linear(f"{block}.mlp.fc2", 4 * width, width)
    norm(f"{image}.norm")

    text = "text_encoder.bert"
    for table, rows in (
        ("word", sizes.words),
        ("position", sizes.text_positions),
        ("token_type", 2),
    ):
        found[f"{text}.embeddings.{table}_embeddings.weight"] = (rows, width)
    norm(f"{text}.embeddings.LayerNorm")
    for index in range(LAYERS):
        layer = f"{text}.encoder.layer.{index}"
        for attention in ("attention", "crossattention")[: 1 + (index >= FUSION)]:
            for part in ("query", "key", "value"):
                linear(f"{layer}.{attention}.self.{part}", width, width)
            linear(f"{layer}.{attention}.output.dense", width, width)
            norm(f"{layer}.{attention}.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", width, 4 * width)
        linear(f"{layer}.output.dense", 4 * width, width)
        norm(f"{layer}.output.LayerNorm")
    linear("itm_head", width, 2)
    linear("vision_proj", width, sizes.projection)
    linear("text_proj", width, sizes.projection)
    return found


def weights(sizes: Sizes) -> dict[str, torch.Tensor]:
    """Return the weights, scaled so that attention is far from uniform in every layer."""
    return {name: _scale(name, by_rule(name, shape)) for name, shape in shapes(sizes).items()}


def _scale(name: str, fractions: torch.Tensor) -> torch.Tensor:
    if "norm" in name.lower():
        return (1.0 if name.endswith("weight") else 0.0) + 0.2 * fractions
    if "embeddings" in name or name.endswith(("cls_token", "pos_embed")):
        return 0.5 * fractions
    if name.endswith("bias"):
        return 0.2 * fractions
    return fractions * math.sqrt(3 / fractions[0].numel())


def training_leftovers(sizes: Sizes) -> dict[str, torch.Tensor]:
    """Return what else the official checkpoint has: of training, and of no use here."""
    return {
        "temp": torch.tensor(0.07),
        "image_queue": torch.zeros(sizes.projection, 8),
        "text_queue": torch.zeros(sizes.projection, 8),
        "queue_ptr": torch.zeros(1, dtype=torch.long),
        "text_encoder.bert.embeddings.position_ids": torch.arange(sizes.text_positions)[None],
        "text_encoder.cls.predictions.bias": torch.zeros(sizes.words),
        "text_encoder.cls.predictions.decoder.weight": torch.zeros(sizes.words, sizes.width),
        "vision_proj_m.weight": torch.zeros(sizes.projection, sizes.width),
        "visual_encoder_m.cls_token": torch.zeros(1, 1, sizes.width),
        "text_encoder_m.bert.embeddings.LayerNorm.bias": torch.zeros(sizes.width),
    }


def write_checkpoint(path: Path, sizes: Sizes) -> None:
    """Write a checkpoint as `torch.save` of the official pretraining does."""
    content = {"model": weights(sizes) | training_leftovers(sizes), "epoch": 29}
    torch.save(content, path)


def inputs(
    sizes: Sizes, image_side: int, images: int, captions: int, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images (B, 3, S, S) and token ids (B, M, L), every second caption padded."""
    batch = 2 * by_rule(f"pictures {image_side}", (images, 3, image_side, image_side))
    fractions = by_rule("tokens", (images, captions, length)).double()
    first = WORDS_FIXED
    tokens = first + ((fractions + 1) / 2 * (sizes.words - first)).long()
    tokens[:, 1::2, length - 3 :] = 0
    return batch, tokens
