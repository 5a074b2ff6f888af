"""The `detector` section of params.yaml."""

from typing import Literal

from stages.common.params import Section
from stages.models.detector_settings import NetworkParams, TrainingParams
from stages.models.engines.dispatch import Engine


class DetectorParams(Section):
    """The network, where its trunk starts from, and the training on pseudo-annotations."""

    engine: Engine
    init: Literal["vlm", "random"]
    network: NetworkParams
    training: TrainingParams
