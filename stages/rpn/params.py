"""Section `rpn` of params.yaml: the supervised comparator of the proposal network."""

from typing import Annotated

from pydantic import Field

from stages.models.detector_settings import StartParams, TrainingParams


class RpnParams(StartParams):
    """The detector whose region proposals are compared, its training, and where to measure."""

    training: TrainingParams
    recall_at: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
