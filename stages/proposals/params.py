"""Section `proposals` of params.yaml: selective search and its filters."""

from stages.models.proposals.selective_search import SearchSettings


class ProposalsParams(SearchSettings):
    """Which proposals to search and to keep."""
