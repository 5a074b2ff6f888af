"""ALBEF at its official size: ViT-B/16, BERT-base with cross-attention in its upper half, a score.

Parts have the names and roles of those in small_albef.py. Sizes and layers are the official
implementation's: pre-normalised image layers, post-normalised text layers, GELU.

Shape legend: B images, M captions per image, L tokens, P = h·w patches, T = 1 + P image tokens, A
heads, D width.
Source: "Align before Fuse" §3.1; tests/golden/README.md says how equality is tested.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import nn
from torch.nn import functional

from stages.common.runtime.storage import write_tensors
from stages.models.backbones.weights import load_exactly
from stages.models.vision_language.small_albef import Attention
from stages.models.vision_language.tokenizer import PAD, CaptionTokenizer

KIND = "albef"
IMAGE_NORM_EPS, TEXT_NORM_EPS = 1e-6, 1e-12  # ViT's and BERT's


@dataclass(frozen=True)
class AlbefConfig:
    """Sizes; official values in brackets."""

    vocabulary_size: int  # [30522]
    text_positions: int  # [512]
    patch_side: int  # pixels [16]
    table_side: int  # side of the image's position table, in patches [16]
    width: int  # [768]
    heads: int  # [12]
    hidden: int  # width inside the perceptrons [3072]
    image_layers: int  # [12]
    text_layers: int  # [6]
    fusion_layers: int  # [6]
    projection: int  # [256]


def _perceptron(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class ImageLayer(nn.Module):
    """A layer of the vision transformer; its attention is not needed, so it is never stored."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.norm_attention = nn.LayerNorm(width, eps=IMAGE_NORM_EPS)
        self.norm_mlp = nn.LayerNorm(width, eps=IMAGE_NORM_EPS)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.mlp = _perceptron(width, config.hidden)

    def forward(self, x: Float[torch.Tensor, "B T D"]) -> Float[torch.Tensor, "B T D"]:
        """Map (B, T, D) to the same shape."""
        parts = self.query_key_value(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.output(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm_mlp(x))


class TextLayer(nn.Module):
    """A BERT layer, optionally with cross-attention after its self-attention."""

    def __init__(self, config: AlbefConfig, cross: bool = False) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.self_attention = Attention(width, heads)
        self.norm_self = nn.LayerNorm(width, eps=TEXT_NORM_EPS)
        if cross:
            self.cross_attention = Attention(width, heads)
            self.norm_cross = nn.LayerNorm(width, eps=TEXT_NORM_EPS)
        self.mlp = _perceptron(width, config.hidden)
        self.norm_mlp = nn.LayerNorm(width, eps=TEXT_NORM_EPS)

    def forward(
        self, x: Float[torch.Tensor, "B L D"], keep: Bool[torch.Tensor, "B L"]
    ) -> Float[torch.Tensor, "B L D"]:
        """Map states (B, L, D) to the same shape, without cross-attention."""
        x = self.norm_self(x + self.self_attention(x, keep))
        return self.norm_mlp(x + self.mlp(x))

    def fuse(
        self,
        x: Float[torch.Tensor, "BM L D"],
        keep: Bool[torch.Tensor, "BM L"],
        context: Float[torch.Tensor, "B P D"],
    ) -> tuple[Float[torch.Tensor, "BM L D"], Float[torch.Tensor, "B A _ P"]]:
        """Return text states (B*M, L, D) and cross-attention (B, A, M*L, 1 + P).

        The M captions of one image share its keys and values.
        """
        x = self.norm_self(x + self.self_attention(x, keep))
        queries = x.reshape(len(context), -1, x.shape[-1])
        update, attention = self.cross_attention.attend(queries, context)
        x = self.norm_cross(x + update.reshape(x.shape))
        return self.norm_mlp(x + self.mlp(x)), attention


class Albef(nn.Module):
    """The model for inference, without momentum copies, queues or the masked-word head."""

    leading_context = 1

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        self.config = config
        width, side = config.width, config.patch_side
        self.patch_embedding = nn.Conv2d(3, width, side, side)
        self.image_class = nn.Parameter(torch.zeros(1, 1, width))
        self.image_position = nn.Parameter(torch.zeros(1, 1 + config.table_side**2, width))
        self.image_layers = nn.ModuleList(ImageLayer(config) for _ in range(config.image_layers))
        self.image_norm = nn.LayerNorm(width, eps=IMAGE_NORM_EPS)

        self.word_embedding = nn.Embedding(config.vocabulary_size, width)
        self.text_position = nn.Parameter(torch.zeros(config.text_positions, width))
        # A caption is the first of BERT's two segments.
        self.text_segment = nn.Parameter(torch.zeros(2, width))
        self.text_norm = nn.LayerNorm(width, eps=TEXT_NORM_EPS)
        self.text_layers = nn.ModuleList(TextLayer(config) for _ in range(config.text_layers))
        self.fusion_layers = nn.ModuleList(
            TextLayer(config, cross=True) for _ in range(config.fusion_layers)
        )
        self.matching_head = nn.Linear(width, 2)
        self.image_projection = nn.Linear(width, config.projection)
        self.text_projection = nn.Linear(width, config.projection)

    @property
    def patch_side(self) -> int:
        """The side of a patch in pixels."""
        return self.config.patch_side

    @property
    def fusion_depth(self) -> int:
        """The number of fusion layers."""
        return len(self.fusion_layers)

    def encode_image(self, images: Float[torch.Tensor, "B 3 H W"]) -> Float[torch.Tensor, "B T D"]:
        """Return image tokens (B, 1 + P, D) of normalised pixels, the class token first."""
        patches = self.patch_embedding(images)
        first = self.image_class.expand(len(images), -1, -1)
        x = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)
        x = x + self._position(patches.shape[-2:])
        for layer in self.image_layers:
            x = layer(x)
        return self.image_norm(x)

    def _position(self, patches_hw: torch.Size) -> torch.Tensor:
        """Return the position table, interpolated to other sizes bicubically, as officially."""
        side = self.config.table_side
        if tuple(patches_hw) == (side, side):
            return self.image_position
        table = self.image_position[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        resized = functional.interpolate(
            table, tuple(patches_hw), mode="bicubic", align_corners=False
        )
        return torch.cat([self.image_position[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)

    def encode_text(self, tokens: Int[torch.Tensor, "B L"]) -> Float[torch.Tensor, "B L D"]:
        """Return text states (B, L, D) of token ids (B, L), before any cross-attention."""
        keep = tokens != PAD
        embedded = self.word_embedding(tokens) + self.text_segment[0]
        x = self.text_norm(embedded + self.text_position[: tokens.shape[1]])
        for layer in self.text_layers:
            x = layer(x, keep)
        return x

    def fusion_text(self, tokens: Int[torch.Tensor, "B L"]) -> Float[torch.Tensor, "B L D"]:
        """Return the input of the fusion layers: the states (B, L, D) of `encode_text`."""
        return self.encode_text(tokens)

    def fusion_context(
        self, image_tokens: Float[torch.Tensor, "B T D"]
    ) -> Float[torch.Tensor, "B _ D"]:
        """Return the context of the fusion layers: class token and patches (B, 1 + P, D)."""
        return image_tokens

    def fuse(
        self,
        text: Float[torch.Tensor, "BM L D"],
        tokens: Int[torch.Tensor, "BM L"],
        context: Float[torch.Tensor, "B P D"],
    ) -> tuple[list[Float[torch.Tensor, "BM L D"]], list[Float[torch.Tensor, "B A _ P"]]]:
        """Return, per fusion layer, states (B*M, L, D) and cross-attention (B, A, M*L, 1 + P)."""
        states, attentions = [], []
        keep = tokens != PAD
        for layer in self.fusion_layers:
            assert isinstance(layer, TextLayer)
            text, attention = layer.fuse(text, keep, context)
            states.append(text)
            attentions.append(attention)
        return states, attentions

    def matching_score(self, fused: Float[torch.Tensor, "BM L D"]) -> Float[torch.Tensor, " BM"]:
        """Return the logit (B*M,) that caption and image match: S in Mask-free OVIS eq. 3."""
        return self.matching_head(fused[:, 0])[:, 1]


def save_albef(path: Path, model: Albef, tokenizer: CaptionTokenizer) -> None:
    """Write weights, sizes and vocabulary into one safetensors file."""
    facts = {
        "kind": KIND,
        "config": asdict(model.config),
        "words": tokenizer.words,
        "max_tokens": tokenizer.max_tokens,
        "ignored": tokenizer.ignored,
    }
    write_tensors(path, model.state_dict(), facts)


def build_albef(
    weights: dict[str, torch.Tensor], facts: dict, origin: Path
) -> tuple[Albef, CaptionTokenizer]:
    """Return the model that `save_albef` wrote, frozen and in evaluation mode, and its tokenizer.

    Raises:
        ValueError: weights do not fit; the message begins with `origin`.
    """
    with torch.device("meta"):
        model = Albef(AlbefConfig(**facts["config"]))
    load_exactly(model, weights, origin)
    tokenizer = CaptionTokenizer(facts["words"], facts["max_tokens"], facts["ignored"])
    return model.eval().requires_grad_(False), tokenizer
