"""The `detector` section of params.yaml."""

from stages.models.detection.params import StartParams, SupervisionParams


class DetectorParams(StartParams):
    """The network, where its backbone starts from, and the training on pseudo-annotations."""

    supervision: SupervisionParams
