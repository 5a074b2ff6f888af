"""One interface for the vision-language models: the small ALBEF, ALBEF and BLIP.

Shape legend: B images, M captions per image, L tokens, P patches, A heads, D width.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, Self

import torch
from jaxtyping import Float, Int
from torch import nn

from stages.common.runtime.storage import read_tensors
from stages.models.vision_language.albef import build_albef
from stages.models.vision_language.blip import build_blip
from stages.models.vision_language.small_albef import build_small_albef
from stages.models.vision_language.tokenizer import CaptionTokenizer


class VisionLanguageModel(Protocol):
    """What the stages ask of a vision-language model."""

    leading_context: int  # columns of the fusion context before the first patch

    def to(self, device: torch.device | None) -> Self:
        """Move it there, as any module."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield its weights, as any module."""

    @property
    def text_projection(self) -> nn.Module:
        """What takes text states (…, D) to the space shared with images."""

    @property
    def fusion_depth(self) -> int:
        """The number of fusion layers."""

    def encode_image(self, images: Float[torch.Tensor, "B 3 H W"]) -> Float[torch.Tensor, "B T D"]:
        """Return image tokens of normalised pixels."""

    def encode_text(self, tokens: Int[torch.Tensor, "B L"]) -> Float[torch.Tensor, "B L D"]:
        """Return text states of token ids, without any image."""

    def fusion_text(self, tokens: Int[torch.Tensor, "B L"]) -> Float[torch.Tensor, "B L D"]:
        """Return the text states that enter the fusion layers."""

    def fusion_context(
        self, image_tokens: Float[torch.Tensor, "B T D"]
    ) -> Float[torch.Tensor, "B _ D"]:
        """Return what the fusion layers attend to, (B, leading_context + P, D)."""

    def fuse(
        self,
        text: Float[torch.Tensor, "BM L D"],
        tokens: Int[torch.Tensor, "BM L"],
        context: Float[torch.Tensor, "B P D"],
    ) -> tuple[list[Float[torch.Tensor, "BM L D"]], list[Float[torch.Tensor, "B A _ P"]]]:
        """Return, per fusion layer, states of the B·M captions and attention (B, A, M·L, P).

        The attention is part of the graph that ends in the states, so it can be differentiated by.
        """

    def matching_score(self, fused: Float[torch.Tensor, "BM L D"]) -> Float[torch.Tensor, " BM"]:
        """Return the matching logit of the last layer's states."""


Builder = Callable[
    [dict[str, torch.Tensor], dict, Path], tuple[VisionLanguageModel, CaptionTokenizer]
]
BUILDERS: dict[str, Builder] = {"albef": build_albef, "blip": build_blip}


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
