"""Settings of the text embeddings, read without a network: importing torch takes seconds."""

from typing import Literal

from pydantic import Field, field_validator

from stages.common.runtime.params import Section


class ClipParams(Section):
    """Where to find CLIP."""

    folder: str


class NameEmbeddingParams(Section):
    """How a name becomes a vector."""

    encoder: Literal["vlm", "clip"]
    clip: ClipParams
    pooling: Literal["name_tokens", "class_token"]
    all_forms: bool
    normalise: bool
    templates: list[str] = Field(min_length=1)

    @field_validator("templates")
    @classmethod
    def _one_place(cls, templates: list[str]) -> list[str]:
        for template in templates:
            if template.count("{}") != 1 or set(template.replace("{}", "")) & set("{}"):
                raise ValueError(
                    f"template '{template}' needs exactly one {{}} for the name, and no other brace"
                )
        return templates
