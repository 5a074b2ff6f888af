"""Section `proposals` of params.yaml: selective search and its filters."""

from stages.models.proposals.selective_search import SearchSettings as ProposalsParams

__all__ = ["ProposalsParams"]
