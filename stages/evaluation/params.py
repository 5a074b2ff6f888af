"""The `evaluation` section of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.common.runtime.params import Section, Split
from stages.models.detection.params import InferenceParams

Fraction = Annotated[float, Field(ge=0, lt=1)]


class EvaluationParams(Section):
    """The split, the metric, which detections remain and which count."""

    split: Split
    metric: Literal["coco", "open_images"]
    expand_detections: bool
    max_detections: Annotated[int, Field(ge=1)]
    training_images: Annotated[int, Field(ge=1)]
    montage_images: Annotated[int, Field(ge=1, le=50)]
    montage_min_score: Fraction
    inference: InferenceParams

    @model_validator(mode="after")
    def _all_that_are_found_count(self) -> "EvaluationParams":
        found, counted = self.inference.detections_per_image, self.max_detections
        if found > counted:
            raise ValueError(
                f"inference.detections_per_image: {found} of an image, of which max_detections"
                f" counts {counted}; raise that, or lower this"
            )
        return self
