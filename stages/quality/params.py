"""Section `quality` of params.yaml."""

from typing import Annotated

from pydantic import Field, field_validator

from stages.common.params import Section


class QualityParams(Section):
    """What the pseudo-labels and proposals are measured at."""

    recall_at: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    activation_thresholds: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=1)]
    montage_rows: Annotated[int, Field(ge=1, le=50)]

    @field_validator("recall_at", "activation_thresholds")
    @classmethod
    def _ascending(cls, values: list) -> list:
        if values != sorted(set(values)):
            raise ValueError("must rise from value to value")
        return values
