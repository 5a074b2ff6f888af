"""The `detector` section of params.yaml."""

from stages.models.detector_settings import StartParams, TrainingParams


class DetectorParams(StartParams):
    """The network, where its backbone starts from, and the training on pseudo-annotations."""

    training: TrainingParams
