"""One interface for the vision-language models: the small ALBEF, ALBEF and BLIP.

Shape legend: B images, M captions per image, L tokens, P patches, A heads, D width.
"""

from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from stages.common.runtime.storage import read_tensors
from stages.models.vision_language.albef import build_albef
from stages.models.vision_language.blip import build_blip
from stages.models.vision_language.small_albef import build_small_albef
from stages.models.vision_language.tokenizer import CaptionTokenizer

BUILDERS = {"albef": build_albef, "blip": build_blip}


class VisionLanguageModel(Protocol):
    """What the stages ask of a vision-language model."""

    text_projection: nn.Module  # text states (…, D) to the space shared with images
    leading_context: int  # columns of the fusion context before the first patch

    @property
    def fusion_depth(self) -> int:
        """The number of fusion layers."""

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """Return image tokens of normalised pixels (B, 3, H, W)."""

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return text states (B, L, D) of token ids (B, L), without any image."""

    def fusion_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the text states (B, L, D) that enter the fusion layers."""

    def fusion_context(self, image_tokens: torch.Tensor) -> torch.Tensor:
        """Return what the fusion layers attend to, (B, leading_context + P, D)."""

    def fuse(
        self, text: torch.Tensor, tokens: torch.Tensor, context: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return, per fusion layer, states (B*M, L, D) and attention (B, A, M*L, context).

        The attention is part of the graph that ends in the states, so it can be differentiated by.
        """

    def matching_score(self, fused: torch.Tensor) -> torch.Tensor:
        """Return the matching logit (B*M,) of the last layer's states."""


def load_vlm(path: Path) -> tuple[VisionLanguageModel, CaptionTokenizer]:
    """Return (model in evaluation mode, its tokenizer) of what the stage `vlm` wrote.

    Raises:
        ValueError: weights are missing or left over; the message lists their names.
    """
    weights, facts = read_tensors(path)
    if not isinstance(facts, dict) or "config" not in facts:
        raise ValueError(f"{path}: not a vision-language model; `dvc repro vlm` makes one")
    builder = BUILDERS[facts["kind"]] if "kind" in facts else build_small_albef
    return builder(weights, facts, path)
