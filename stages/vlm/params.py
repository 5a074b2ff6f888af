"""The `vlm` section of params.yaml."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from stages.common.runtime.params import Section

PATCH_SIDE = 8  # pixels, of the small ALBEF


class ModelParams(Section):
    """Sizes of the small ALBEF."""

    width: int = Field(ge=8)
    heads: int = Field(ge=1)
    stem_width: int = Field(ge=4)
    residual_blocks: int = Field(ge=0)
    image_layers: int = Field(ge=0)
    text_layers: int = Field(ge=0)
    fusion_layers: int = Field(ge=2)
    projection: int = Field(ge=8)
    max_patches_side: int = Field(ge=2)
    max_tokens: int = Field(ge=4, le=512)


class PhaseParams(Section):
    """One phase of training."""

    steps: int = Field(ge=1)
    learning_rate: float = Field(gt=0)


class WeightParams(Section):
    """Weights of the losses; 0 leaves a loss out of the sum."""

    word_alignment: float = Field(ge=0)
    contrastive: float = Field(ge=0)
    matching: float = Field(ge=0)
    masked_words: float = Field(ge=0)
    replaced_words: float = Field(ge=0)


class PretrainedParams(Section):
    """Where the pretrained weights are."""

    checkpoint: str | None
    sha256: str | None = Field(pattern="^[0-9a-fA-F]{64}$")
    vocabulary: str
    max_tokens: int = Field(ge=4, le=512)


class VlmParams(Section):
    """Where the vision-language model comes from, and the settings of its training."""

    source: Literal["train", "albef", "blip"]
    pretrained: PretrainedParams
    image_size: int = Field(ge=16)
    batch_size: int = Field(ge=2)
    min_word_count: int = Field(ge=1)
    align: PhaseParams
    fuse: PhaseParams
    warmup_steps: int = Field(ge=1)
    weight_decay: float = Field(ge=0)
    pool_sharpness: float = Field(ge=0)
    context_drop: float = Field(ge=0, lt=1)
    visible_threshold: float = Field(ge=0)
    swaps: int = Field(ge=0)
    mask_visible: float = Field(ge=0, le=1)
    mask_other: float = Field(ge=0, le=1)
    bfloat16: bool
    weights: WeightParams
    model: ModelParams

    @model_validator(mode="after")
    def _the_model_can_be_built(self) -> "VlmParams":
        model, patches = self.model, self.image_size // PATCH_SIDE
        if self.source == "train" and model.width % model.heads:
            raise ValueError(f"model.heads: {model.heads} must divide model.width = {model.width}")
        if self.source == "train" and model.max_patches_side < patches:
            raise ValueError(
                f"model.max_patches_side: {model.max_patches_side} must be at least {patches},"
                f" the patches of {PATCH_SIDE} pixels in image_size = {self.image_size}"
            )
        return self

    def check_references(self, key: str, params: Mapping[str, Any], elsewhere: bool) -> None:
        """Check that the pretrained weights and their vocabulary are there."""
        if self.source != "train" and not elsewhere:
            from stages.vlm.pretrained import find_pretrained, read_vocabulary  # imports torch

            find_pretrained(self.source, self.pretrained)
            read_vocabulary(self.pretrained.vocabulary)
