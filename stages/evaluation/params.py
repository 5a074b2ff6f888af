"""The `evaluation` section of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field

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
