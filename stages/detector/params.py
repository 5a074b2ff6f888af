"""The `detector` section of params.yaml."""

from stages.models.detector_settings import StartParams, TrainingParams
from stages.models.engines.dispatch import Engine


class DetectorParams(StartParams):
    """The network, where its backbone starts from, and the training on pseudo-annotations."""

    engine: Engine
    training: TrainingParams
