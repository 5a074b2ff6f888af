"""Section `proposals` of params.yaml: selective search and its filters."""

from typing import Annotated, Literal

from pydantic import Field

from stages.common.params import Section


class ProposalsParams(Section):
    """Which proposals to search and to keep."""

    mode: Literal["single", "fast", "quality"]
    longer_side: Annotated[int, Field(ge=32)]
    min_side: Annotated[float, Field(ge=1)]
    max_area_fraction: Annotated[float, Field(gt=0, le=1)]
    max_aspect: Annotated[float, Field(ge=1)]
