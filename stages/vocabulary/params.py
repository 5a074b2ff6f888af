"""The `vocabulary` section of params.yaml."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from stages.common.runtime.hub import find_hub_file
from stages.models.vision_language.params import NameEmbeddingParams


class VocabularyParams(NameEmbeddingParams):
    """How a class name becomes a vector, and how many names the text encoder may not know."""

    max_unknown_fraction: float = Field(ge=0, le=1)

    def check_references(self, key: str, params: Mapping[str, Any], elsewhere: bool) -> None:
        """Check that CLIP is there."""
        if self.encoder == "clip" and not elsewhere:
            find_hub_file(self.clip.folder, "config.json", f"{key}.clip.folder")
