"""The `vocabulary` section of params.yaml."""

from pydantic import Field

from stages.models.vision_language.name_embedding import NameEmbeddingParams


class VocabularyParams(NameEmbeddingParams):
    """How a class becomes a vector, and how many may be unknown to the text encoder."""

    max_unknown_fraction: float = Field(ge=0, le=1)
