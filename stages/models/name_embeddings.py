"""A name becomes a vector: the text encoder reads it inside prompt templates.

Shape legend: P prompts of a name, L tokens, D width.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch.nn import functional

from stages.common.categories import Category
from stages.common.params import Section
from stages.models.albef import Albef
from stages.models.tokenizer import UNKNOWN, CaptionTokenizer


class NamePrompts(Section):
    """How a name becomes a vector; the section `vocabulary` of params.yaml extends it."""

    pooling: Literal["name_tokens", "class_token"]
    all_forms: bool
    templates: list[str] = Field(min_length=1)

    @field_validator("templates")
    @classmethod
    def _one_place(cls, templates: list[str]) -> list[str]:
        for template in templates:
            if template.count("{}") != 1:
                raise ValueError(f"template '{template}' needs exactly one {{}} for the name")
        return templates


def known_forms(tokenizer: CaptionTokenizer, category: Category, all_forms: bool) -> list[str]:
    """Return the name, or else the first form, or all forms, without an unknown word."""
    names = [category.name.lower(), *sorted(set(category.forms) - {category.name.lower()})]
    known = [name for name in names if UNKNOWN not in tokenizer.encode([name])]
    return known if all_forms else known[:1]


def unknown_words(tokenizer: CaptionTokenizer, name: str) -> list[str]:
    """Return the words of a name that the tokenizer reads as [UNK]."""
    return [word for word in name.lower().split() if UNKNOWN in tokenizer.encode([word])]


@torch.no_grad()
def embed_forms(
    model: Albef, tokenizer: CaptionTokenizer, forms: Sequence[str], prompts: NamePrompts
) -> torch.Tensor:
    """Return the unit vector float32 (D,): the mean over forms and prompts of their unit vectors.

    Args:
        model: its text encoder is used.
        tokenizer: that of the model.
        forms: lower-case texts for one thing; a word that is not known is read as [UNK].
        prompts: templates, and which states of the encoder count.
    """
    texts, places = [], []
    for form in forms:
        for template in prompts.templates:
            start = template.index("{}")
            texts.append(template.format(form))
            places.append(tokenizer.tokens_at(texts[-1], start, start + len(form)))
    states = model.encode_text(tokenizer.encode(texts))
    if prompts.pooling == "class_token":
        vectors = model.text_projection(states[:, 0])
    else:
        vectors = torch.stack(
            [row[where].mean(0) for row, where in zip(states, places, strict=True)]
        )
    return functional.normalize(functional.normalize(vectors, dim=-1).mean(0), dim=0)
