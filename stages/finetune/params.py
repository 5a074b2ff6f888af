"""The `finetune` section of params.yaml."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import model_validator

from stages.common.runtime.params import PARAMS_FILE, Section
from stages.models.detection.params import (
    InferenceParams,
    SupervisionParams,
    TrainingParams,
    check_sources,
    check_training,
    network_params,
)


class FinetuneParams(Section):
    """The classes of the softmax, how unlabelled objects are treated, and the training."""

    vocabulary: Literal["base", "all"]
    unlabelled: Literal["background", "detections"]
    detections: InferenceParams
    supervision: SupervisionParams
    training: TrainingParams

    def check_references(self, key: str, params: Mapping[str, Any], elsewhere: bool) -> None:
        """Check the region losses, and that training and sources fit the architecture."""
        if self.training.region_losses:
            from stages.models.detection.region_hooks import check_hooks  # imports torch

            check_hooks(self, key)
        detector = params.get("detector")
        architecture = detector.get("architecture") if isinstance(detector, dict) else None
        try:
            network = network_params(architecture)
        except ValueError as error:
            raise ValueError(f"{PARAMS_FILE}: detector.{error}") from None
        try:
            check_training(self.training, network)
            check_sources(self.supervision, network)
        except ValueError as error:
            raise ValueError(f"{PARAMS_FILE}: {key}.{error}") from None

    @model_validator(mode="after")
    def _truth_has_no_scores(self) -> "FinetuneParams":
        weighed = [source.name for source in self.supervision.sources if source.weigh_by_score]
        if "ground_truth" in weighed:
            raise ValueError("ground_truth: has no scores; set weigh_by_score to false")
        return self

    @model_validator(mode="after")
    def _detections_need_their_classes(self) -> "FinetuneParams":
        if self.unlabelled == "detections" and self.vocabulary == "base":
            raise ValueError(
                "unlabelled: detections are of novel classes; set vocabulary to all, or unlabelled"
                " to background"
            )
        return self
