"""The `finetune` section of params.yaml."""

from typing import Literal

from pydantic import Field

from stages.common.params import Section
from stages.models.detector_settings import TrainingParams


class FinetuneParams(Section):
    """Which classes the softmax runs over, what unlabelled objects count as, and the training."""

    vocabulary: Literal["base", "all"]
    unlabelled: Literal["background", "ignore"]
    ignore_score: float = Field(gt=0, lt=1)
    training: TrainingParams
