"""The claims: what is compared with what, when a claim holds, and that no path is misspelt."""

import copy
import json

import pytest

from flows.claims import CLAIMS, METRICS, claims_table, judge, measure_claims
from flows.sweeps.results import Result
from flows.sweeps.worktrees import worktree


def facts() -> dict:
    """Metrics of one seed in the form of the stages' files, with all claims holding."""
    masks = {
        "pseudo": {g: {"mean_iou": 0.5} for g in ("base", "novel")},
        "box_filled": {g: {"mean_iou": 0.4} for g in ("base", "novel")},
        "thresholded_activation": {g: {"mean_iou": 0.3} for g in ("base", "novel")},
    }
    first = copy.deepcopy(masks)
    for group in first["pseudo"].values():
        group["mean_iou"] = 0.45
    recall = {"wspn": 0.9, "selective_search": 0.5, "random_order": 0.6, "rpn": 0.7}
    recall["rpn_in_layers"] = 0.8

    def generalized(base: float, novel: float) -> dict:
        return {
            "generalized": {
                group: {kind: {"AP50": value} for kind in ("bbox", "segm")}
                for group, value in (("base", base), ("novel", novel))
            }
        }

    detector = generalized(50, 50)
    detector["training_objects"] = {
        "all": {"found_detector_mask_iou": 0.55, "found_pseudo_mask_iou": 0.5}
    }
    return {
        "quality": {"masks": masks},
        "first_look": {"masks": first},
        "rpn": {
            "recall": {
                method: {"novel": {f"recall@{k}": value for k in (10, 50, 100)}}
                for method, value in recall.items()
            }
        },
        "evaluation": {"detector": detector, "finetune": generalized(70, 51)},
        "oracle": {"oracle": generalized(75, 70)},
        "true_masks": {"true_masks": generalized(50, 60)},
        "wsddn": {"wsddn": generalized(10, 10)},
    }


def test_every_claim_of_the_paper_is_there():
    assert [claim.name for claim in CLAIMS] == list("abcdefg")
    assert set(facts()) == set(METRICS) | {"first_look"}


def test_claims_hold_by_the_mean_over_seeds():
    good, bad = facts(), facts()
    bad["evaluation"]["finetune"]["generalized"]["novel"]["segm"]["AP50"] = 45.0
    assert all(entry["holds"] for entry in judge([good, good], [0, 1]))
    entries = judge([good, bad], [0, 1])
    fallen = [entry for entry in entries if not entry["holds"]]
    assert [(entry["claim"], entry["values"]) for entry in fallen] == [("f", [51.0, 45.0])]


def test_oracle_share_counts():
    worse = facts()
    worse["evaluation"]["detector"]["generalized"]["novel"]["bbox"]["AP50"] = 45.0  # 64 % of 70
    fallen = [entry for entry in judge([worse], [0]) if not entry["holds"]]
    assert [entry["claim"] for entry in fallen] == ["e"]


def test_missing_metric_is_an_error():
    broken = facts()
    del broken["rpn"]["recall"]["rpn"]
    with pytest.raises(KeyError, match="rpn"):
        judge([broken], [0])


def test_table_shows_mean_spread_and_verdict():
    first, second = facts(), facts()
    second["evaluation"]["detector"]["generalized"]["novel"]["segm"]["AP50"] = 40.0
    table = claims_table(judge([first, second], [0, 1]))
    row = next(line for line in table.splitlines() if "novel mask AP50 above" in line)
    assert "45.0 ± 7.1" in row
    assert "× 0.65" in row
    assert "**no**" in row


def test_claims_are_read_off_the_points_of_a_sweep(monkeypatch, tmp_path):
    """Every seed is two points: all that is compared, and the labels of the first looks alone."""
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims/dvc.yaml").write_text("stages: {rpn: {}, oracle_evaluation: {}}")
    asked = []

    def run(root, name, points, cores):
        asked.extend(points)
        for point in points:
            files = {"quality": "first_look"} if "boxes.activation_round" in point.values else {}
            for name, path in METRICS.items():
                file = worktree(root, point) / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(facts()[files.get(name, name)]))
        return [Result(point, failed, {}) for point in points]

    failed = False
    monkeypatch.setattr("flows.claims.run_points", run)
    results = measure_claims(tmp_path, [1, 2])
    assert [(point.values, point.targets) for point in asked[:2]] == [
        (
            {"seed": 1},
            ("quality", "evaluation", "claims/dvc.yaml:rpn", "claims/dvc.yaml:oracle_evaluation"),
        ),
        (
            {"seed": 1, "boxes.activation_round": "first", "masks.activation_round": "first"},
            ("quality",),
        ),
    ]
    assert results == judge([facts(), facts()], [1, 2])
    assert json.loads((tmp_path / "docs/claims.json").read_text()) == results
    failed = True
    with pytest.raises(RuntimeError, match=r"seed=1, seed=1,boxes.* failed; mend it"):
        measure_claims(tmp_path, [1])
