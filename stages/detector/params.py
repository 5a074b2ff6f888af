"""The `detector` section of params.yaml."""

from pydantic import model_validator

from stages.models.detection.params import StartParams, SupervisionParams


class DetectorParams(StartParams):
    """The network, where its backbone starts from, and the training on pseudo-annotations."""

    region_head: str | None
    supervision: SupervisionParams

    @model_validator(mode="after")
    def _region_head_fits_the_network(self) -> "DetectorParams":
        if self.region_head is not None and "region_hooks" not in self.network.supports:
            raise ValueError("region_head: this architecture takes none; set it to null")
        return self
