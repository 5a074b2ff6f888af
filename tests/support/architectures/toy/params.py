"""What `detector.architecture: toy` can be asked for."""

from stages.models.detection.params import NetworkParams as DetectorNetworkParams


class NetworkParams(DetectorNetworkParams):
    losses = ("classification", "box")
    parts = ("trunk", "pyramid", "heads")
    supports = frozenset({"micro_batches"})

    detections_per_image: int
