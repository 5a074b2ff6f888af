"""The small ALBEF: align patches and words, then fuse them by cross-attention.

It has an image encoder, a text encoder, fusion layers and a matching score, as in "Align before
Fuse". It differs from the official model in its patch embedding (a convolutional trunk of stride 8
instead of 16-pixel patches) and in its pre-normalised text layers. Names and roles are the same.

Shape legend: B images, M captions per image, L tokens, P patches, T = 1 + P image tokens, h w patch
rows and columns, A heads, D width, V words.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import nn
from torch.nn import functional

from stages.common.runtime.storage import read_tensors, write_tensors
from stages.models.backbones.trunk import Trunk
from stages.models.backbones.weights import load_exactly
from stages.models.vision_language.tokenizer import PAD, CaptionTokenizer


@dataclass(frozen=True)
class SmallAlbefConfig:
    """Sizes; `max_patches_side` is the side of the position table, in patches."""

    vocabulary_size: int
    max_tokens: int
    max_patches_side: int
    width: int
    heads: int
    stem_width: int
    residual_blocks: int
    image_layers: int
    text_layers: int
    fusion_layers: int
    projection: int


class Attention(nn.Module):
    """Multi-head attention of states to each other or to a context."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

    def _project(
        self, x: torch.Tensor, context: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return (
            self._split(self.query(x)),
            self._split(self.key(context)),
            self._split(self.value(context)),
        )

    def _join(self, heads: torch.Tensor) -> torch.Tensor:
        return self.output(heads.transpose(-2, -3).flatten(-2))

    def forward(
        self, x: Float[torch.Tensor, "B L D"], keep: Bool[torch.Tensor, "B L"] | None
    ) -> Float[torch.Tensor, "B L D"]:
        """Return (B, L, D): each state attends to all; `keep` (B, L) is false at padding."""
        query, key, value = self._project(x, x)
        mask = None if keep is None else keep[:, None, None, :]
        if torch.is_grad_enabled():
            return self._join(_attention(query, key, mask) @ value)
        # Four times as fast on a CPU with 16×16 patches, but slower with gradients.
        return self._join(
            functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        )

    def attend(
        self, x: Float[torch.Tensor, "B L D"], context: Float[torch.Tensor, "B P D"]
    ) -> tuple[Float[torch.Tensor, "B L D"], Float[torch.Tensor, "B A L P"]]:
        """Return (result (B, L, D), attention (B, A, L, P)), for GradCAM.

        Source: Mask-free OVIS eq. 1-2, with the learned projections and the A heads that they leave
        out.
        """
        query, key, value = self._project(x, context)
        attention = _attention(query, key, None)
        return self._join(attention @ value), attention


def _attention(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return attention weights (B, A, L, P); keys where `mask` is false get none."""
    logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, -1e4)
    return logits.softmax(-1).to(query.dtype)


class Layer(nn.Module):
    """Pre-normalised self-attention, optional cross-attention, and a two-layer perceptron."""

    def __init__(self, width: int, heads: int, cross: bool = False) -> None:
        super().__init__()
        self.norm_self, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attention = Attention(width, heads)
        first, last = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.mlp = nn.Sequential(first, nn.ReLU(), last)
        # Layers start as the identity, except for cross-attention, which is needed at once.
        nn.init.zeros_(self.self_attention.output.weight)
        nn.init.zeros_(last.weight)
        if cross:
            self.norm_cross = nn.LayerNorm(width)
            self.cross_attention = Attention(width, heads)

    def forward(
        self, x: Float[torch.Tensor, "B L D"], keep: Bool[torch.Tensor, "B L"] | None = None
    ) -> Float[torch.Tensor, "B L D"]:
        """Map (B, L, D) to (B, L, D), without cross-attention."""
        normed = self.norm_self(x)
        x = x + self.self_attention(normed, keep)
        return x + self.mlp(self.norm_mlp(x))

    def fuse(
        self,
        x: Float[torch.Tensor, "BM L D"],
        keep: Bool[torch.Tensor, "BM L"],
        context: Float[torch.Tensor, "B P D"],
    ) -> tuple[Float[torch.Tensor, "BM L D"], Float[torch.Tensor, "B A _ P"]]:
        """Return (text states (B*M, L, D), cross-attention (B, A, M*L, P)).

        The M captions of one image share its keys and values.
        """
        normed = self.norm_self(x)
        x = x + self.self_attention(normed, keep)
        queries = self.norm_cross(x).reshape(len(context), -1, x.shape[-1])
        update, attention = self.cross_attention.attend(queries, context)
        x = x + update.reshape(x.shape)
        return x + self.mlp(self.norm_mlp(x)), attention


class SmallAlbef(nn.Module):
    """The model; each method is one step of it."""

    leading_context = 0
    patch_side = 8  # pixels, the trunk's stride

    def __init__(self, config: SmallAlbefConfig) -> None:
        super().__init__()
        self.config = config
        width, side = config.width, config.max_patches_side
        self.trunk = Trunk(config.stem_width, width, config.residual_blocks)
        self.image_position = nn.Parameter(torch.randn(1, side * side + 1, width) * 0.02)
        self.image_class = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.image_layers = nn.ModuleList(
            Layer(width, config.heads) for _ in range(config.image_layers)
        )
        self.image_norm = nn.LayerNorm(width)

        self.word_embedding = nn.Embedding(config.vocabulary_size, width)
        nn.init.normal_(self.word_embedding.weight, std=0.3)
        self.text_position = nn.Parameter(torch.randn(1, config.max_tokens, width) * 0.02)
        self.text_layers = nn.ModuleList(
            Layer(width, config.heads) for _ in range(config.text_layers)
        )
        self.text_norm = nn.LayerNorm(width)

        self.patch_projection = nn.Linear(width, width)
        fusion = [Layer(width, config.heads, cross=True) for _ in range(config.fusion_layers)]
        self.fusion_layers = nn.ModuleList(fusion)
        self.fusion_norm = nn.LayerNorm(width)
        self.matching_head = nn.Linear(width, 2)
        self.word_head = nn.Linear(width, config.vocabulary_size)
        self.replaced_heads = nn.ModuleList(
            nn.Linear(width, 1) for _ in range(config.fusion_layers)
        )
        self.image_projection = nn.Linear(width, config.projection)
        self.text_projection = nn.Linear(width, config.projection)
        self.log_inverse_temperature = nn.Parameter(torch.tensor(math.log(10.0)))
        for layer in fusion:
            self._start_aligned(layer.cross_attention)

    @torch.no_grad()
    def _start_aligned(self, attention: Attention) -> None:
        """Start cross-attention as the word-patch similarity that the word alignment learns."""
        for linear, gain in ((attention.query, 1.5), (attention.key, 1.0)):
            linear.weight.copy_(gain * torch.eye(self.config.width))
            linear.bias.zero_()

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.image_class.device

    @property
    def fusion_depth(self) -> int:
        """The number of fusion layers."""
        return len(self.fusion_layers)

    def encode_patches(
        self, images: Float[torch.Tensor, "B 3 H W"]
    ) -> Float[torch.Tensor, "B P D"]:
        """Return the trunk's normalised patch features (B, P, D), before the image layers."""
        return self.image_norm(self.trunk(images)[1].flatten(2).transpose(1, 2))

    def encode_image(
        self, images: Float[torch.Tensor, "B 3 H W"], window: tuple[int, int] | None = None
    ) -> Float[torch.Tensor, "B T D"]:
        """Return image tokens (B, 1 + P, D) of normalised pixels, the class token first.

        `window` is the (row, column) of the position table for the image's top-left patch; None
        centres the image. Training on small images at random places of the table prepares it for
        large ones.

        Raises:
            ValueError: the image has more patches per side than the position table.
        """
        features = self.trunk(images)[1]
        position = self._window(features.shape[-2:], window)
        patches = features.flatten(2).transpose(1, 2) + position
        first = (self.image_class + self.image_position[:, :1]).expand(len(images), -1, -1)
        x = torch.cat([first.to(patches.dtype), patches], dim=1)
        for layer in self.image_layers:
            x = layer(x)
        return self.image_norm(x)

    def _window(self, patches_hw: torch.Size, window: tuple[int, int] | None) -> torch.Tensor:
        side = self.config.max_patches_side
        rows, columns = patches_hw
        if max(rows, columns) > side:
            raise ValueError(
                f"an image of {rows}×{columns} patches does not fit the position table of"
                f" {side}×{side}; raise vlm.model.max_patches_side or lower the image size"
            )
        top, left = window or ((side - rows) // 2, (side - columns) // 2)
        table = self.image_position[:, 1:].unflatten(1, (side, side))
        return table[:, top : top + rows, left : left + columns].flatten(1, 2)

    def encode_text(self, tokens: Int[torch.Tensor, "B L"]) -> Float[torch.Tensor, "B L D"]:
        """Return text states (B, L, D) of token ids (B, L), before any cross-attention."""
        keep = tokens != PAD
        x = self.word_embedding(tokens) + self.text_position[:, : tokens.shape[1]]
        for layer in self.text_layers:
            x = layer(x, keep)
        return self.text_norm(x)

    def fusion_text(self, tokens: Int[torch.Tensor, "B L"]) -> Float[torch.Tensor, "B L D"]:
        """Return the input of the fusion layers: the states (B, L, D) of `encode_text`."""
        return self.encode_text(tokens)

    def fusion_context(
        self, image_tokens: Float[torch.Tensor, "B T D"]
    ) -> Float[torch.Tensor, "B _ D"]:
        """Return the context of the fusion layers: patches (B, P, D) in the words' space."""
        return self.patch_projection(image_tokens[:, 1:])

    def fuse(
        self,
        text: Float[torch.Tensor, "BM L D"],
        tokens: Int[torch.Tensor, "BM L"],
        context: Float[torch.Tensor, "B P D"],
    ) -> tuple[list[Float[torch.Tensor, "BM L D"]], list[Float[torch.Tensor, "B A _ P"]]]:
        """Return, per fusion layer, states (B*M, L, D) and cross-attention (B, A, M*L, P)."""
        states, attentions = [], []
        keep = tokens != PAD
        for layer in self.fusion_layers:
            assert isinstance(layer, Layer)
            text, attention = layer.fuse(text, keep, context)
            states.append(self.fusion_norm(text))
            attentions.append(attention)
        return states, attentions

    def matching_score(self, fused: Float[torch.Tensor, "BM L D"]) -> Float[torch.Tensor, " BM"]:
        """Return the logit (B*M,) that caption and image match: S in Mask-free OVIS eq. 3."""
        return self.matching_head(fused[:, 0])[:, 1]

    def word_patch_logits(
        self, patches: Float[torch.Tensor, "B P D"], word_ids: Int[torch.Tensor, " words"]
    ) -> Float[torch.Tensor, "B P words"]:
        """Return similarities (B, P, words) of patches from `encode_patches` to single words.

        They are dot products; only the words have unit length.
        """
        words = functional.normalize(self.word_embedding(word_ids).float(), dim=-1)
        return self.patch_projection(patches).float() @ words.T


def save_small_albef(path: Path, model: SmallAlbef, tokenizer: CaptionTokenizer) -> None:
    """Write weights, sizes and vocabulary into one safetensors file."""
    facts = {"config": asdict(model.config), "words": tokenizer.words}
    write_tensors(path, model.state_dict(), facts)


def build_small_albef(
    weights: dict[str, torch.Tensor], facts: dict, origin: Path
) -> tuple[SmallAlbef, CaptionTokenizer]:
    """Return the model that `save_small_albef` wrote, in evaluation mode, and its tokenizer.

    Raises:
        ValueError: weights do not fit; the message begins with `origin`.
    """
    config = SmallAlbefConfig(**facts["config"])
    model = SmallAlbef(config)
    load_exactly(model, weights, origin)
    return model.eval(), CaptionTokenizer(facts["words"], config.max_tokens)


def load_small_albef(path: Path) -> tuple[SmallAlbef, CaptionTokenizer]:
    """Return the small model in evaluation mode and its tokenizer.

    Raises:
        ValueError: the file holds another vision-language model, or weights are missing or left
            over; the message lists their names.
    """
    weights, facts = read_tensors(path)
    if "kind" in facts:
        raise ValueError(
            f"{path} holds {facts['kind']}, which has no convolutional trunk to share with other"
            " networks; params.yaml: set vlm.source to train, or wspn.model.backbone.kind to"
            " resnet50 or vgg16"
        )
    return build_small_albef(weights, facts, path)
