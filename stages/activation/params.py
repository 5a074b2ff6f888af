"""The `activation` section of params.yaml."""

from typing import Literal

from pydantic import Field

from stages.common.runtime.params import Section


class ActivationParams(Section):
    """How the activation map of a named object is computed."""

    captions: Literal["all", "one"]
    forms: Literal["all", "name"]
    image_size: int = Field(ge=16)
    fusion_layer: int = Field(ge=0)
    rounds: int = Field(ge=0, le=16)
    mask_scope: Literal["object", "image"]
    mask_threshold: float = Field(gt=0, lt=1)
    union: Literal["sum", "max"]
    reach: float = Field(ge=0)
    weigh_visible: bool
    batch_size: int = Field(ge=1)
