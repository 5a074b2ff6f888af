"""The texts that phase `fuse` pairs each image with, and the losses of the fused states.

Shape legend: B pairs, L tokens, S copies of the caption with a swapped word, P patches, D width.
Each image has M = S + 3 texts in this order: its caption, a hard negative, the S swapped copies,
and a copy with masked words. K = S + 2 texts are matched with the image: all but the masked copy.
R = S + 1 texts may have a replaced word: the caption and its swapped copies.
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int64
from torch.nn import functional

from stages.common.runtime.devices import send
from stages.models.vision_language.small_albef import SmallAlbef
from stages.vlm import losses
from stages.vlm.params import VlmParams
from stages.vlm.words import WordSwapper


@dataclass(frozen=True)
class FusionTexts:
    """The texts of a batch, and their targets.

    Attributes:
        tokens: of all texts.
        matches: whether the text belongs to the image: only the caption does.
        valid: whether the text counts; not if no word of it could be swapped.
        replaced: which words differ from the caption's.
        counted: which words are visible.
        masked: which words the masked copy hides.
    """

    tokens: Int64[torch.Tensor, "B M L"]
    matches: Bool[torch.Tensor, "B K"]
    valid: Bool[torch.Tensor, "B K"]
    replaced: Bool[torch.Tensor, "B R L"]
    counted: Bool[torch.Tensor, "B R L"]
    masked: Bool[torch.Tensor, "B L"]

    @property
    def caption_and_swapped(self) -> list[int]:
        """The places of the R texts among the M."""
        return [0, *range(2, self.tokens.shape[1] - 1)]

    def to(self, device: torch.device) -> "FusionTexts":
        """Return a copy on `device`."""
        return FusionTexts(*(send(getattr(self, field.name), device) for field in fields(self)))


def draw_texts(
    tokens: Int64[torch.Tensor, "B L"],
    similarity: Float[torch.Tensor, "B B"],
    swapper: WordSwapper,
    params: VlmParams,
    generator: torch.Generator,
) -> FusionTexts:
    """Draw the texts of a batch, on the CPU, so that all devices draw the same.

    Args:
        tokens: the images' captions, on the CPU.
        similarity: of images and captions, from which negatives are drawn; on any device.
        swapper: swaps and masks words.
        params: how many copies, and how many words are masked.
        generator: on the CPU.
    """
    negative = tokens[losses.hard_negatives(similarity.detach().cpu(), tokens, generator)]
    swaps = [swapper.swap(tokens, generator) for _ in range(params.swaps)]
    masked_copy, masked = swapper.mask(tokens, params.mask_visible, params.mask_other, generator)
    swapped = [copy for copy, _ in swaps]
    always = torch.ones(len(tokens), dtype=torch.bool)
    valid = torch.stack([always, always, *(possible for _, possible in swaps)], dim=1)
    matches = torch.zeros_like(valid)
    matches[:, 0] = True
    copies = torch.stack([tokens, *swapped], dim=1)
    return FusionTexts(
        torch.stack([tokens, negative, *swapped, masked_copy], dim=1),
        matches,
        valid,
        copies != tokens[:, None],
        swapper.is_visible(copies),
        masked,
    )


def fused_losses(
    model: SmallAlbef, texts: FusionTexts, context: Float[torch.Tensor, "B P D"]
) -> dict[str, Float[torch.Tensor, ""]]:
    """Return the losses of the texts fused with the images' patches, named as in `vlm.weights`."""
    shape = texts.tokens.shape[:2]
    flat = texts.tokens.flatten(0, 1)
    states, _ = model.fuse(model.encode_text(flat), flat, context)
    fused = states[-1].unflatten(0, shape)
    replaced_logits = [
        head(state)[..., 0].unflatten(0, shape)[:, texts.caption_and_swapped].float()
        for head, state in zip(model.replaced_heads, states, strict=True)
    ]
    word_logits = model.word_head(fused[:, -1][texts.masked]).float()
    match_logits = model.matching_head(fused[:, :-1, 0]).float()
    words = texts.tokens[:, 0][texts.masked]
    return {
        "matching": losses.matching(match_logits, texts.matches, texts.valid),
        "replaced_words": losses.replaced_words(replaced_logits, texts.replaced, texts.counted),
        "masked_words": functional.cross_entropy(word_logits, words, reduction="sum")
        / texts.masked.sum().clamp(min=1),
    }
