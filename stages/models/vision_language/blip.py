"""BLIP's image-text matching model, as transformers implements it, behind our interface.

All its text layers have cross-attention, so all are fusion layers, and plain embeddings enter them.
Without an image, the same layers encode text alone. transformers is imported only when a BLIP is
built, because the import takes seconds.

Shape legend: B images, M captions per image, L tokens, P patches, T = 1 + P image tokens, A heads,
D width.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import nn

from stages.common.runtime.storage import write_tensors
from stages.models.vision_language.tokenizer import PAD, CaptionTokenizer

if TYPE_CHECKING:
    from transformers import BlipForImageTextRetrieval

KIND = "blip"
HIDDEN_LOGIT = -1e4  # finite: a caption that is all padding must not give 0/0


class Blip(nn.Module):
    """A BLIP network, one step per method."""

    leading_context = 1

    def __init__(self, network: "BlipForImageTextRetrieval") -> None:
        super().__init__()
        self.network = network

    @property
    def patch_side(self) -> int:
        """The side of a patch in pixels."""
        return self.network.config.vision_config.patch_size

    @property
    def fusion_depth(self) -> int:
        """The number of fusion layers."""
        return len(self.network.text_encoder.encoder.layer)

    @property
    def text_projection(self) -> nn.Module:
        """The layer that maps text states (…, D) into the space shared with images."""
        return self.network.text_proj

    def encode_image(self, images: Float[torch.Tensor, "B 3 H W"]) -> Float[torch.Tensor, "B T D"]:
        """Return image tokens (B, 1 + P, D); positions are interpolated to the image's size."""
        return self.network.vision_model(images, interpolate_pos_encoding=True).last_hidden_state

    def encode_text(self, tokens: Int[torch.Tensor, "B L"]) -> Float[torch.Tensor, "B L D"]:
        """Return text states (B, L, D) of token ids (B, L), without any image."""
        keep = (tokens != PAD).long()
        return self.network.text_encoder(tokens, attention_mask=keep).last_hidden_state

    def fusion_text(self, tokens: Int[torch.Tensor, "B L"]) -> Float[torch.Tensor, "B L D"]:
        """Return the input of the fusion layers: embeddings (B, L, D)."""
        return self.network.text_encoder.embeddings(tokens)

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
        """Return, per layer, states (B*M, L, D) and cross-attention (B, A, M*L, 1 + P).

        Each layer's parts are called separately, so that the M captions of an image share its keys
        and values.
        """
        states, attentions = [], []
        hidden = ((tokens == PAD) * HIDDEN_LOGIT).to(text.dtype)[:, None, None]
        for layer in self.network.text_encoder.encoder.layer:
            text, _ = layer.attention(text, attention_mask=hidden)
            queries = text.reshape(len(context), -1, text.shape[-1])
            seen, attention = layer.crossattention(queries, encoder_hidden_states=context)
            text = layer.feed_forward_chunk(seen.reshape(text.shape))
            states.append(text)
            attentions.append(attention)
        return states, attentions

    def matching_score(self, fused: Float[torch.Tensor, "BM L D"]) -> Float[torch.Tensor, " BM"]:
        """Return the logit (B*M,) that caption and image match: S in Mask-free OVIS eq. 3."""
        return self.network.itm_head(fused[:, 0])[:, 1]


def save_blip(path: Path, model: Blip, tokenizer: CaptionTokenizer) -> None:
    """Write weights, transformers' config and the vocabulary into one safetensors file."""
    config = json.loads(model.network.config.to_json_string(use_diff=False))
    for name in ("transformers_version", "_name_or_path"):  # so that equal weights give equal bytes
        config.pop(name, None)
    facts = {
        "kind": KIND,
        "config": config,
        "words": tokenizer.words,
        "max_tokens": tokenizer.max_tokens,
        "ignored": tokenizer.ignored,
    }
    write_tensors(path, model.network.state_dict(), facts)


def load_network(
    source: Path | None, origin: Path, **options: object
) -> tuple["BlipForImageTextRetrieval", int]:
    """Return a network of transformers, and how many buffers of older files were left out.

    Args:
        source: a folder in hub format; None if `options` hold config and weights.
        origin: the file that error messages begin with.
        options: passed on to transformers' from_pretrained.

    Raises:
        ValueError: weights are missing or unexpected (both are listed), or of another shape.
    """
    from transformers import BlipForImageTextRetrieval

    try:
        network, report = BlipForImageTextRetrieval.from_pretrained(
            source,
            attn_implementation="eager",  # the other implementations do not return attention
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    except RuntimeError as error:  # weights of another shape
        raise ValueError(f"{origin}: cannot be loaded as a BLIP: {error}") from error
    missing, unexpected = report["missing_keys"], report["unexpected_keys"]
    left_out = {key for key in unexpected if key.endswith(".position_ids")}
    if missing or unexpected - left_out:
        raise ValueError(
            f"{origin}: missing weights: {', '.join(sorted(missing)) or 'none'}; unexpected"
            f" weights: {', '.join(sorted(unexpected - left_out)) or 'none'}"
        )
    return network, len(left_out)


def build_blip(
    weights: dict[str, torch.Tensor], facts: dict, origin: Path
) -> tuple[Blip, CaptionTokenizer]:
    """Return the model that `save_blip` wrote, frozen and in evaluation mode, and its tokenizer.

    Raises:
        ValueError: weights do not fit; the message begins with `origin`.
    """
    from transformers import BlipConfig

    config = BlipConfig.from_dict(facts["config"])
    network, _ = load_network(None, origin, config=config, state_dict=weights)
    tokenizer = CaptionTokenizer(facts["words"], facts["max_tokens"], facts["ignored"])
    return Blip(network).eval().requires_grad_(False), tokenizer
