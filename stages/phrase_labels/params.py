"""Section `phrase_labels` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field

from stages.common.runtime.params import Section


class PhraseLabelsParams(Section):
    """What a phrase of several things becomes, and how many phrases the montage shows."""

    several: Literal["box", "crowd"]
    montage_rows: Annotated[int, Field(ge=1, le=50)]
