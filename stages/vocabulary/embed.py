"""Text embeddings of class names through prompt templates.

Shape legend: C classes, P prompts of a class, L tokens, D width.
"""

import torch
from torch.nn import functional

from stages.common.categories import Category
from stages.models.albef import Albef
from stages.models.tokenizer import UNKNOWN, CaptionTokenizer
from stages.vocabulary.params import VocabularyParams


@torch.no_grad()
def embed_categories(
    model: Albef, tokenizer: CaptionTokenizer, categories: list[Category], params: VocabularyParams
) -> tuple[torch.Tensor, list[str]]:
    """Return vectors and the names that the text encoder does not know.

    A vector has unit length and is the mean over prompts of their unit vectors. An unknown name is
    read as [UNK], so all unknown ones have about the same vector.

    Returns:
        float32 (C, D), and names of which every form has an unknown word.

    Raises:
        ValueError: more names are unknown than `max_unknown_fraction` allows.
    """
    forms = [_known_forms(tokenizer, category, params.all_forms) for category in categories]
    unknown = [c.name for c, known in zip(categories, forms, strict=True) if not known]
    if len(unknown) > params.max_unknown_fraction * len(categories):
        raise ValueError(
            f"the text encoder knows no word of {len(unknown)} of {len(categories)} classes:"
            f" {', '.join(unknown)}. Its captions name them too rarely: lower vlm.min_word_count,"
            " give it more captions, or raise vocabulary.max_unknown_fraction"
        )
    vectors = [
        _embed(model, tokenizer, known or [category.name.lower()], params)
        for category, known in zip(categories, forms, strict=True)
    ]
    return torch.stack(vectors), unknown


def _known_forms(tokenizer: CaptionTokenizer, category: Category, all_forms: bool) -> list[str]:
    """Return the name, or else the first form, or all forms, without an unknown word."""
    names = [category.name.lower(), *sorted(set(category.forms) - {category.name.lower()})]
    known = [name for name in names if UNKNOWN not in tokenizer.encode([name])]
    return known if all_forms else known[:1]


def _embed(
    model: Albef, tokenizer: CaptionTokenizer, names: list[str], params: VocabularyParams
) -> torch.Tensor:
    prompts, places = [], []
    for name in names:
        for template in params.templates:
            start = template.index("{}")
            prompts.append(template.format(name))
            places.append(tokenizer.tokens_at(prompts[-1], start, start + len(name)))
    states = model.encode_text(tokenizer.encode(prompts))
    if params.pooling == "class_token":
        vectors = model.text_projection(states[:, 0])
    else:
        vectors = torch.stack(
            [row[where].mean(0) for row, where in zip(states, places, strict=True)]
        )
    return functional.normalize(functional.normalize(vectors, dim=-1).mean(0), dim=0)
