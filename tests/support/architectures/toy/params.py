"""The params of `detector.architecture: toy`."""

from stages.models.detection.params import NetworkParams as DetectorNetworkParams


class NetworkParams(DetectorNetworkParams):
    losses = ("classification", "box")
    parts = ("trunk", "pyramid", "heads")
    supports = frozenset({"micro_batches"})
