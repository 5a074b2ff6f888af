"""The `vocabulary` section of params.yaml."""

from pydantic import Field

from stages.models.vision_language.name_embedding import NameEmbeddingParams


class VocabularyParams(NameEmbeddingParams):
    """How a class name becomes a vector, and how many names the text encoder may not know."""

    max_unknown_fraction: float = Field(ge=0, le=1)
