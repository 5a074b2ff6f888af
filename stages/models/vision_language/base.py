"""One interface to the vision-language models: the small ALBEF, ALBEF and BLIP.

Shape legend: B images, M captions per image, L tokens, T image tokens, P patches, A heads, D width.
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
    """What the stages call on a vision-language model."""

    leading_context: int  # tokens of the fusion context before the first patch

    @property
    def patch_side(self) -> int:
        """The side of a patch in pixels; sides of images must be multiples of it."""

    def to(self, device: torch.device | None) -> Self:
        """Move the weights to a device, as any module does."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the weights, as any module does."""

    @property
    def text_projection(self) -> nn.Module:
        """The layer that maps text states (…, D) into the space shared with images."""

    @property
    def fusion_depth(self) -> int:
        """The number of fusion layers."""

    def encode_image(self, images: Float[torch.Tensor, "B 3 H W"]) -> Float[torch.Tensor, "B T D"]:
        """Return image tokens of normalised pixels."""

    def encode_text(self, tokens: Int[torch.Tensor, "B L"]) -> Float[torch.Tensor, "B L D"]:
        """Return text states of token ids, without an image."""

    def fusion_text(self, tokens: Int[torch.Tensor, "B L"]) -> Float[torch.Tensor, "B L D"]:
        """Return the text states that enter the fusion layers."""

    def fusion_context(
        self, image_tokens: Float[torch.Tensor, "B T D"]
    ) -> Float[torch.Tensor, "B _ D"]:
        """Return the context of the fusion layers, (B, leading_context + P, D)."""

    def fuse(
        self,
        text: Float[torch.Tensor, "BM L D"],
        tokens: Int[torch.Tensor, "BM L"],
        context: Float[torch.Tensor, "B P D"],
    ) -> tuple[list[Float[torch.Tensor, "BM L D"]], list[Float[torch.Tensor, "B A _ P"]]]:
        """Return, per fusion layer, states of the B·M captions and their attention to the context.

        The attention, (B, A, M·L, leading_context + P), is in the graph that leads to the states,
        so gradients with respect to it exist.
        """

    def matching_score(self, fused: Float[torch.Tensor, "BM L D"]) -> Float[torch.Tensor, " BM"]:
        """Return the matching logit of the last layer's states."""


Builder = Callable[
    [dict[str, torch.Tensor], dict, Path], tuple[VisionLanguageModel, CaptionTokenizer]
]
BUILDERS: dict[str, Builder] = {"albef": build_albef, "blip": build_blip}


def load_vlm(path: Path) -> tuple[VisionLanguageModel, CaptionTokenizer]:
    """Return the model that stage `vlm` wrote, in evaluation mode, and its tokenizer.

    Raises:
        ValueError: the file is not a vision-language model, or weights are missing or left over;
            the message lists their names.
    """
    weights, facts = read_tensors(path)
    if not isinstance(facts, dict) or "config" not in facts:
        raise ValueError(f"{path}: not a vision-language model; `dvc repro vlm` makes one")
    builder = BUILDERS[facts["kind"]] if "kind" in facts else build_small_albef
    return builder(weights, facts, path)
