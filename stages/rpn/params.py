"""Section `rpn` of params.yaml: the supervised comparator of the proposal network."""

from typing import Annotated, Literal

from pydantic import Field

from stages.common.params import Section
from stages.models.detector_settings import NetworkParams, TrainingParams


class RpnParams(Section):
    """The detector whose region proposals are compared, its training, and where to measure."""

    init: Literal["vlm", "random"]
    network: NetworkParams
    training: TrainingParams
    recall_at: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
