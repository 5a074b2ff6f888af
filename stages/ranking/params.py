"""The `ranking` section of params.yaml: from proposals to the top-K boxes of an image."""

from stages.models.proposals.params import RankingSettings as RankingParams

__all__ = ["RankingParams"]
