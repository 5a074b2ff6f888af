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
) -> torch.Tensor:
    """Return float32 (C, D) of unit length: the mean over prompts of their unit vectors.

    Raises:
        ValueError: every prompt of a class has an unknown word in its name.
    """
    return torch.stack([_embed(model, tokenizer, category, params) for category in categories])


def _embed(
    model: Albef, tokenizer: CaptionTokenizer, category: Category, params: VocabularyParams
) -> torch.Tensor:
    names = [category.name.lower(), *sorted(set(category.forms) - {category.name.lower()})]
    prompts, places = [], []
    for name in names if params.all_forms else names[:1]:
        for template in params.templates:
            prompt = template.format(name)
            where = tokenizer.tokens_at(
                prompt, template.index("{}"), template.index("{}") + len(name)
            )
            known = where and UNKNOWN not in tokenizer.encode([prompt])[0, where]
            if known:
                prompts.append(prompt)
                places.append(where)
    if not prompts:
        raise ValueError(
            f"the text encoder knows no word of class '{category.name}' ({', '.join(names)}); its"
            " captions name it too rarely (vlm.min_word_count)"
        )
    tokens = tokenizer.encode(prompts)
    states = model.encode_text(tokens)
    if params.pooling == "class_token":
        vectors = model.text_projection(states[:, 0])
    else:
        vectors = torch.stack(
            [row[where].mean(0) for row, where in zip(states, places, strict=True)]
        )
    return functional.normalize(functional.normalize(vectors, dim=-1).mean(0), dim=0)
