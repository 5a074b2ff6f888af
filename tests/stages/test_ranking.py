import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.common.images import write_pictures
from stages.common.params import read_section
from stages.common.storage import read_table, write_table
from stages.common.tables import boxes_table
from stages.models.wspn import save_wspn
from stages.models.wspn_ranking import (
    RankingSettings,
    order_in_layers,
    rank_proposals,
)
from stages.ranking import __main__ as stage
from stages.ranking.params import RankingParams
from tests.stages.test_wspn import picture, random_boxes, small_model

USUAL = RankingSettings(
    top_k=10,
    score="quality",
    refinements=2,
    keep_proposals=True,
    nms_iou=[0.5, 0.7],
)
PARAMS = (
    "seed: 0\ndeterministic: device\n"
    "ranking: {top_k: 5, score: quality, refinements: 1, keep_proposals: true,"
    " nms_iou: [0.5, 0.7]}\n"
)


def test_layers_by_hand():
    # IoU with the first: second 0.9, third 2/3, fourth 0.5 (suppressed above the threshold only)
    boxes = torch.tensor(
        [[0, 0, 30, 10], [0, 0, 27, 10], [0, 0, 20, 10], [0, 0, 15, 10], [60, 0, 70, 10]]
    ).float()
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.1])
    rows, ranked = order_in_layers(boxes, scores, [0.5, 0.7])
    # layer 1 keeps 0, then 3 (IoU exactly 0.5), then 4; layer 2 adds 2 although 0.7 > 0.6;
    # 1 overlaps 0 by 0.9 and is dropped; 2 overlaps 3 by 0.75 and is dropped too
    assert rows.tolist() == [0, 3, 4]
    assert ranked.tolist() == pytest.approx([0.95, 0.8, 0.55])
    rows, ranked = order_in_layers(boxes, scores, [0.5, 0.8])
    assert rows.tolist() == [0, 3, 4, 2]
    assert ranked.tolist() == pytest.approx([0.95, 0.8, 0.55, 0.35])


@given(st.integers(0, 2**31), st.integers(1, 60))
def test_first_layer_is_plain_suppression_and_scores_never_rise(seed, count):
    boxes = torch.from_numpy(random_boxes(seed, count))
    scores = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    one, _ = order_in_layers(boxes, scores, [0.5])
    rows, ranked = order_in_layers(boxes, scores, [0.5, 0.7, 0.9])
    assert rows[: len(one)].tolist() == one.tolist()
    assert len(set(rows.tolist())) == len(rows)
    assert (ranked.diff() <= 1e-6).all() and ranked.min() >= 0 and ranked.max() <= 1


@settings(max_examples=10)
@given(
    st.integers(0, 99), st.sampled_from(["quality", "classes"]), st.integers(0, 2), st.booleans()
)
def test_ranked_boxes_are_few_ordered_and_inside(seed, score, refinements, keep):
    chosen = USUAL.model_copy(
        update={"score": score, "refinements": refinements, "keep_proposals": keep}
    )
    image = picture(seed, 100).decode()
    boxes, scores = rank_proposals(small_model(), image, random_boxes(seed, 20, 100), chosen)
    assert boxes.dtype == scores.dtype == np.float32 and 1 <= len(boxes) == len(scores) <= 10
    assert boxes.min() >= 0 and boxes.max() <= 100 and (boxes[:, 2:] > boxes[:, :2]).all()
    assert (np.diff(scores) <= 1e-6).all()


def test_without_refinement_only_proposals_are_returned():
    proposals = random_boxes(3, 20)
    unrefined = USUAL.model_copy(update={"refinements": 0})
    boxes, _ = rank_proposals(small_model(), picture(3).decode(), proposals, unrefined)
    assert {tuple(box) for box in boxes} <= {tuple(box) for box in proposals}


def write_inputs(folder, proposal_ids):
    (folder / "params.yaml").write_text(PARAMS)
    write_pictures(folder / "data/download/images/train/0.parquet", [picture(1), picture(2)])
    boxes = np.concatenate([random_boxes(k, 9) for k in proposal_ids])
    write_table(folder / "data/proposals/0.parquet", boxes_table(np.repeat(proposal_ids, 9), boxes))
    save_wspn(folder / "data/wspn/model.safetensors", small_model())


@pytest.fixture
def run_stage(tmp_path, monkeypatch):
    def run(proposal_ids):
        write_inputs(tmp_path, proposal_ids)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["ranking", "0"])
        threads = torch.get_num_threads()
        try:
            stage.main()
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(False)
        return tmp_path / "data/ranking/0.parquet"

    return run


def test_the_stage_writes_the_same_table_twice(run_stage):
    path = run_stage([1, 2])
    first = path.read_bytes()
    table = read_table(path)
    assert table.column_names == ["image_id", "x0", "y0", "x1", "y1", "score"]
    assert set(table["image_id"].to_pylist()) == {1, 2} and len(table) <= 10
    assert run_stage([1, 2]).read_bytes() == first


def test_a_picture_without_proposals_is_named(run_stage):
    with pytest.raises(ValueError, match=r"proposals/0\.parquet: no row for picture 2"):
        run_stage([1])


def test_falling_thresholds_are_refused(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.replace("[0.5, 0.7]", "[0.7, 0.5]"))
    with pytest.raises(ValueError, match=r"ranking\.nms_iou: .*must rise"):
        read_section("ranking", RankingParams, path)
