"""The `pseudo_boxes` section of params.yaml."""

from typing import Literal

from pydantic import Field

from stages.common.runtime.params import Section


class PseudoBoxesParams(Section):
    """How a pseudo-box is chosen from the proposals."""

    activation_round: Literal["last", "first"]
    smoothing: float = Field(ge=0)
    binarise: Literal["none", "otsu"]
    area_power: float = Field(ge=0, le=1)
    top_k: int = Field(ge=1)
