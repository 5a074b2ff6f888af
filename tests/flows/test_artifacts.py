"""What Prefect's pages are given; the pages themselves are Prefect's."""

from uuid import uuid4

import httpx
import pytest

from flows import artifacts
from flows.artifacts import StageProgress, show_outcomes, show_plan
from flows.graph import Outcome, Status, Step
from tests.flows.test_graph import make


@pytest.fixture
def shown(monkeypatch):
    """Give the list of (kind, arguments) that artifacts are made of."""
    calls = []

    def record(kind):
        def create(*arguments, **named):
            calls.append((kind, arguments, named))
            return uuid4()

        return create

    for kind in ("progress", "table"):
        monkeypatch.setattr(artifacts, f"create_{kind}_artifact", record(kind))
    monkeypatch.setattr(artifacts, "update_progress_artifact", record("update"))
    return calls


def test_plan_is_a_table(shown):
    show_plan([Step(make("cut@0"), Status.MUST_RUN, ("cut.by: 1 → 2", "more"))])
    assert [kind for kind, *_ in shown] == ["table"]
    row = {"stage": "cut@0", "plan": "must run", "why": "cut.by: 1 → 2; more"}
    assert shown[0][2]["table"] == [row]


def test_outcomes_are_a_table(shown):
    show_outcomes([Outcome("cut@0", "cut", "executed", 1.5)])
    ((kind, _, named),) = shown
    assert kind == "table"
    assert named["table"] == [{"stage": "cut@0", "outcome": "executed", "seconds": 1.5}]


LINES = [
    "Running stage 'wspn':",
    "wspn, classify: 10/40 in 10 s (1.0/s, 30 s left)",
    "wspn, classify: 20/40 in 20 s (1.0/s, 20 s left)",
    "wspn, classify: 40/40 in 40 s (1.0/s)",
]


def test_progress_lines_become_one_artifact(shown):
    progress = StageProgress("pseudo_boxes@0", seconds_between=0)
    for line in LINES:
        progress.see(line)
    assert [kind for kind, *_ in shown] == ["progress", "update", "update"]
    assert shown[0][1] == (25.0,)
    assert shown[0][2]["key"] == "progress-pseudo-boxes-0"
    assert shown[0][2]["description"] == "wspn, classify: 10/40, 1.0/s, 30 s left"
    assert [call[1][1] for call in shown[1:]] == [50.0, 100.0]


def test_progress_is_throttled_but_for_its_end_and_short_stages_have_none(shown):
    progress = StageProgress("wspn", seconds_between=1000)
    for line in LINES:
        progress.see(line)
    assert [kind for kind, *_ in shown] == ["progress", "update"]
    assert shown[-1][1][1] == 100.0
    StageProgress("ranking").see(LINES[-1])
    assert len(shown) == 2


def test_progress_that_cannot_be_shown_does_not_fail_the_stage(monkeypatch, capsys):
    def refuse(*arguments, **named):
        raise httpx.ConnectError("nobody answers")

    monkeypatch.setattr(artifacts, "create_progress_artifact", refuse)
    progress = StageProgress("wspn", seconds_between=0)
    for line in LINES:
        progress.see(line)
    assert capsys.readouterr().out.count("nobody answers") == 1
