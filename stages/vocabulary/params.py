"""The `vocabulary` section of params.yaml."""

from typing import Literal

from pydantic import Field, field_validator

from stages.common.params import Section


class VocabularyParams(Section):
    """How a class name becomes a vector."""

    pooling: Literal["name_tokens", "class_token"]
    all_forms: bool
    max_unknown_fraction: float = Field(ge=0, le=1)
    templates: list[str] = Field(min_length=1)

    @field_validator("templates")
    @classmethod
    def _one_place(cls, templates: list[str]) -> list[str]:
        for template in templates:
            if template.count("{}") != 1:
                raise ValueError(f"template '{template}' needs exactly one {{}} for the name")
        return templates
