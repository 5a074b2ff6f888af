"""The `pseudo_boxes` section of params.yaml."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from stages.common.runtime.params import PARAMS_FILE, Section


class PseudoBoxesParams(Section):
    """How a pseudo-box is chosen from the proposals."""

    activation_round: Literal["last", "first"]
    smoothing: float = Field(ge=0)
    binarise: Literal["none", "otsu"]
    area_power: float = Field(ge=0, le=1)
    top_k: int = Field(ge=1)

    def check_references(self, key: str, params: Mapping[str, Any], elsewhere: bool) -> None:
        """Check that ranking keeps that many boxes."""
        match params:
            case {"ranking": {"top_k": int(kept)}} if kept < self.top_k:
                raise ValueError(
                    f"{PARAMS_FILE}: {key}.top_k: {self.top_k} is more than ranking.top_k = {kept};"
                    " lower it or raise that"
                )
