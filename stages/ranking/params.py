"""Section `ranking` of params.yaml: from proposals to an image's top-K boxes."""

from stages.models.proposals.ranking import RankingSettings


class RankingParams(RankingSettings):
    """How boxes are refined, scored and kept apart."""
