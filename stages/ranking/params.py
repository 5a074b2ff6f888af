"""Section `ranking` of params.yaml: from proposals to an image's top-K boxes."""

from stages.models.proposals.ranking import RankingSettings as RankingParams

__all__ = ["RankingParams"]
