"""Text embeddings of object names in prompt templates, for known classes or for any names.

Shape legend: N names, P prompts, D width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float, Float32
from torch.nn import functional

from stages.common.formats.categories import Category
from stages.models.vision_language.base import VisionLanguageModel, load_vlm
from stages.models.vision_language.clip_text import ClipTextEncoder
from stages.models.vision_language.params import NameEmbeddingParams
from stages.models.vision_language.tokenizer import CaptionTokenizer


class TextEncoder(Protocol):
    """Turns prompts into vectors."""

    @property
    def words(self) -> Sequence[str]:
        """All tokens that it knows; empty if it knows every word."""

    def knows(self, name: str) -> bool:
        """Return whether the encoder knows every word of the name."""

    def encode(
        self, prompts: Sequence[str], places: Sequence[tuple[int, int]]
    ) -> Float[torch.Tensor, "P D"]:
        """Return (P, D); `places` are the characters [start, end) of the name in each prompt."""


class VlmTextEncoder:
    """The text encoder of the vision-language model."""

    def __init__(
        self, model: VisionLanguageModel, tokenizer: CaptionTokenizer, pooling: str
    ) -> None:
        self._model, self._tokenizer, self._pooling = model, tokenizer, pooling
        self.words = tokenizer.words

    def knows(self, name: str) -> bool:
        """Return whether no word of the name is read as [UNK]."""
        return self._tokenizer.unknown not in self._tokenizer.encode([name])

    def encode(
        self, prompts: Sequence[str], places: Sequence[tuple[int, int]]
    ) -> Float[torch.Tensor, "P D"]:
        """Return (P, D): the mean state of the name's tokens, or the projected state of [CLS].

        Raises:
            ValueError: a prompt is cut before its name ends.
        """
        where = [
            self._tokenizer.tokens_at(prompt, *place)
            for prompt, place in zip(prompts, places, strict=True)
        ]
        if [] in where:
            raise ValueError(
                f"'{prompts[where.index([])]}' is cut to {self._tokenizer.max_tokens} tokens before"
                " the name in it ends; shorten the name or the template"
            )
        device = next(self._model.parameters()).device
        states = self._model.encode_text(self._tokenizer.encode(prompts).to(device))
        if self._pooling == "class_token":
            return self._model.text_projection(states[:, 0])
        return torch.stack(
            [row[positions].mean(0) for row, positions in zip(states, where, strict=True)]
        )


class NameEmbedder:
    """Embeds each name by the mean over all templates."""

    def __init__(self, encoder: TextEncoder, templates: Sequence[str], normalise: bool) -> None:
        """Give unit vectors, or with `normalise` false plain means of the encoder's vectors."""
        self._encoder, self._templates, self._normalise = encoder, templates, normalise
        self.words = encoder.words

    def knows(self, name: str) -> bool:
        """Return whether the encoder knows every word of the name."""
        return self._encoder.knows(name.lower())

    def unknown_words(self, name: str) -> list[str]:
        """Return the words of a name that the encoder does not know."""
        return [word for word in name.lower().split() if not self.knows(word)]

    def known_forms(self, category: Category, all_forms: bool) -> list[str]:
        """Return the forms of a class that have no unknown word, its name first.

        Without `all_forms`, return only the first of them.
        """
        names = [category.name.lower(), *sorted(set(category.forms) - {category.name.lower()})]
        known = [name for name in names if self.knows(name)]
        return known if all_forms else known[:1]

    def embed_names(self, names: Sequence[str]) -> Float32[torch.Tensor, "N D"]:
        """Return one vector per name, as rows for a classifier.

        A vector does not depend on the other names. Unknown words are read as [UNK], so names with
        unknown words have about the same vector.
        """
        return torch.stack([self.embed_forms([name.lower()]) for name in names])

    @torch.no_grad()
    def embed_forms(self, forms: Sequence[str]) -> Float[torch.Tensor, " D"]:
        """Return one vector, the mean over forms and templates.

        With `normalise` it is the mean of unit vectors, scaled to unit length.
        """
        prompts, places = [], []
        for form in forms:
            for template in self._templates:
                start = template.index("{}")
                prompts.append(template.format(form))
                places.append((start, start + len(form)))
        vectors = self._encoder.encode(prompts, places)
        if not self._normalise:
            return vectors.mean(0)
        return functional.normalize(functional.normalize(vectors, dim=-1).mean(0), dim=0)


def load_name_embedder(
    params: NameEmbeddingParams, vlm: Path, device: torch.device | None = None
) -> NameEmbedder:
    """Return the embedder that the params ask for.

    Args:
        params: section `vocabulary`, or a predictor's prompts.
        vlm: the file of the vision-language model; read only if its text encoder is asked for.
        device: where to compute, and where the vectors are; by default the CPU.

    Raises:
        FileNotFoundError: CLIP is neither in a folder nor in the hub's cache.
        ValueError: a model's weights do not fit, or CLIP's tokeniser belongs to another model.
    """
    if params.encoder == "clip":
        encoder: TextEncoder = ClipTextEncoder(params.clip.folder, device)
    else:
        model, tokenizer = load_vlm(vlm)
        encoder = VlmTextEncoder(model.to(device), tokenizer, params.pooling)
    return NameEmbedder(encoder, params.templates, params.normalise)
