"""An input of comparators besides the experiment's results: proposals of held-out images."""

import sys

from tests.support.run_module import run_module


def search_held_out(monkeypatch, split: str) -> None:
    """Search the split's images as comparators/dvc.yaml does, in the working directory."""
    monkeypatch.setattr(sys, "argv", ["proposals", split, "--output", "data/held_out_proposals"])
    run_module("stages.proposals")
    monkeypatch.setattr(sys, "argv", ["comparator"])
