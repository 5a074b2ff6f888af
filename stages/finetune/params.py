"""The `finetune` section of params.yaml."""

from typing import Literal

from pydantic import Field, model_validator

from stages.common.runtime.params import Section
from stages.models.detection.params import SupervisionParams, TrainingParams


class FinetuneParams(Section):
    """The classes of the softmax, how unlabelled objects are treated, and the training."""

    vocabulary: Literal["base", "all"]
    unlabelled: Literal["background", "detections"]
    detection_score: float = Field(gt=0, lt=1)
    supervision: SupervisionParams
    training: TrainingParams

    @model_validator(mode="after")
    def _detections_need_their_classes(self) -> "FinetuneParams":
        if self.unlabelled == "detections" and self.vocabulary == "base":
            raise ValueError(
                "unlabelled: detections are of novel classes; set vocabulary to all, or unlabelled"
                " to background"
            )
        return self
