"""Text embeddings of the object classes, from the class name or from all its forms.

Shape legend: C classes, D width.
"""

import torch
from jaxtyping import Float32

from stages.common.formats.categories import Category
from stages.models.vision_language.name_embedding import NameEmbedder
from stages.vocabulary.params import VocabularyParams


def embed_categories(
    embedder: NameEmbedder, categories: list[Category], params: VocabularyParams
) -> tuple[Float32[torch.Tensor, "C D"], list[str]]:
    """Return the embeddings of the classes, and the names that the text encoder does not know.

    An embedding is the mean over prompts, of unit length if `params.normalise`. An unknown name is
    read as [UNK], so all unknown names have about the same embedding.

    Returns:
        The embeddings, and the names whose forms all have an unknown word.

    Raises:
        ValueError: more names are unknown than `max_unknown_fraction` allows.
    """
    forms = [embedder.known_forms(category, params.all_forms) for category in categories]
    unknown = [c.name for c, known in zip(categories, forms, strict=True) if not known]
    if len(unknown) > params.max_unknown_fraction * len(categories):
        raise ValueError(
            f"the text encoder does not know the names of {len(unknown)} of {len(categories)}"
            f" classes: {', '.join(unknown)}. The captions name them too rarely: lower"
            " vlm.min_word_count, add captions, or raise vocabulary.max_unknown_fraction"
        )
    vectors = [
        embedder.embed_forms(known or [category.name.lower()])
        for category, known in zip(categories, forms, strict=True)
    ]
    return torch.stack(vectors), unknown
