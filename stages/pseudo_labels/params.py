"""Section `pseudo_labels` of params.yaml."""

from typing import Annotated

from pydantic import Field

from stages.common.runtime.params import Section


class PseudoLabelsParams(Section):
    """Which pseudo-masks become pseudo-annotations."""

    min_area: Annotated[int, Field(ge=1)]
    keep_fraction: Annotated[float, Field(gt=0, le=1)]
    max_untargeted_fraction: Annotated[float, Field(ge=0, le=1)]
    min_labelled_fraction: Annotated[float, Field(ge=0, le=1)]
