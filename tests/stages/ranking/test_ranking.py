import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.common.formats.images import write_images
from stages.common.formats.tables import boxes_table
from stages.common.runtime.params import read_section
from stages.common.runtime.storage import read_table, write_table
from stages.models.proposals.base import ImageFeatures, Wspn
from stages.models.proposals.file import save_wspn
from stages.models.proposals.params import AgreementSettings, RankingSettings, ViewSettings
from stages.models.proposals.ranking import (
    order_by_class,
    order_in_layers,
    rank_proposals,
)
from stages.ranking import __main__ as stage
from stages.ranking.params import RankingParams
from tests.support.boxes import random_boxes
from tests.support.images import noise_image
from tests.support.tiny_wspn import tiny_wspn

VIEWS = ViewSettings(shorter_sides=[48], longer_side=96, flip=True)
USUAL = RankingSettings(
    top_k=10,
    score="quality",
    agreement={"neighbour_iou": 1.0, "power": 1.0},
    scored="box",
    refinements=2,
    keep_proposals=True,
    nms_iou=[0.5, 0.7],
    views=VIEWS,
)
PARAMS = (
    "seed: 0\ndeterministic: device\n"
    "ranking: {top_k: 5, score: quality, agreement: {neighbour_iou: 1.0, power: 1.0}, scored: box, "
    "refinements: 1, keep_proposals: true, nms_iou: [0.5, 0.7], "
    "views: {shorter_sides: [48], longer_side: 96, flip: true}}\n"
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


def test_classes_do_not_suppress_each_other_by_hand():
    # a cup in front of a dog (IoU 0.5), a second view of the dog (IoU 0.9 with it), and a bird
    boxes = torch.tensor([[0, 0, 20, 10], [0, 0, 10, 10], [0, 0, 18, 10], [50, 0, 60, 10]]).float()
    dog, cup, bird = [0.9, 0.1, 0.8, 0.0], [0.2, 0.7, 0.3, 0.1], [0.01, 0.02, 0.03, 0.6]
    scores = torch.tensor([dog, cup, bird]).T
    rows, ranked = order_by_class(boxes, scores, [0.3], 10)
    # dog keeps 0 and 3 (0.0); cup 1 and 3 (0.1); bird 3 and, of the others, 2 (0.03): the dog's
    # second view stands last although the dog gave it 0.8, for there the first one suppresses it
    assert rows.tolist() == [0, 1, 3, 2]
    assert ranked.tolist() == pytest.approx([0.9, 0.7, 0.6, 0.03])
    together, _ = order_in_layers(boxes, scores.amax(1), [0.3])
    assert together.tolist() == [0, 3]  # the cup would be lost
    assert order_by_class(boxes, scores, [0.3], 2)[0].tolist() == [0, 1]


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 5), st.integers(1, 12))
def test_the_best_of_each_class_hold_the_best_of_all(seed, count, classes, top_k):
    boxes = torch.from_numpy(random_boxes(seed, count))
    scores = torch.rand(count, classes, generator=torch.Generator().manual_seed(seed))
    layers = [0.3, 0.6]
    pairs = [
        (score, row)
        for own in scores.unbind(1)
        for row, score in zip(
            *(x.tolist() for x in order_in_layers(boxes, own, layers)), strict=True
        )
    ]
    expected = list(dict.fromkeys(row for _, row in sorted(pairs, reverse=True)))[:top_k]
    rows, ranked = order_by_class(boxes, scores, layers, top_k)
    assert rows.tolist() == expected
    assert ranked.tolist() == [max(score for score, r in pairs if r == row) for row in expected]


def test_one_class_is_ordered_as_without_classes():
    boxes = torch.from_numpy(random_boxes(5, 50))
    scores = torch.rand(50, generator=torch.Generator().manual_seed(5))
    rows, ranked = order_in_layers(boxes, scores, [0.4, 0.7])
    by_class, class_scores = order_by_class(boxes, scores[:, None], [0.4, 0.7], 50)
    assert by_class.tolist() == rows.tolist() and class_scores.tolist() == ranked.tolist()


@settings(max_examples=10)
@given(
    st.integers(0, 99),
    st.sampled_from(["quality", "classes"]),
    st.sampled_from(["box", "proposal"]),
    st.integers(0, 2),
    st.booleans(),
)
def test_ranked_boxes_are_few_ordered_and_inside(seed, score, scored, refinements, keep):
    chosen = USUAL.model_copy(
        update={"score": score, "scored": scored}
        | {"refinements": refinements, "keep_proposals": keep}
    )
    image = noise_image(seed, 100).decode()
    boxes, scores = rank_proposals(tiny_wspn(), image, random_boxes(seed, 20, 100), chosen)
    assert boxes.dtype == scores.dtype == np.float32 and 1 <= len(boxes) == len(scores) <= 10
    assert boxes.min() >= 0 and boxes.max() <= 100 and (boxes[:, 2:] > boxes[:, :2]).all()
    assert (np.diff(scores) <= 1e-6).all()


def test_class_scores_rank_boxes_within_their_classes(monkeypatch):
    model, proposals = tiny_wspn(), np.array([[0, 0, 40, 40], [0, 0, 40, 36]], np.float32)
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8]])  # IoU 0.9, but each is the best of its class
    monkeypatch.setattr(model, "score_classes", lambda features, boxes: scores)
    by_class = USUAL.model_copy(update={"score": "classes", "refinements": 0, "nms_iou": [0.3]})
    boxes, ranked = rank_proposals(model, noise_image(1).decode(), proposals, by_class)
    assert boxes.tolist() == proposals.tolist()
    assert ranked.tolist() == pytest.approx([0.9, 0.8])


def test_without_refinement_only_proposals_are_returned():
    proposals = random_boxes(3, 20)
    unrefined = USUAL.model_copy(update={"refinements": 0})
    boxes, _ = rank_proposals(tiny_wspn(), noise_image(3).decode(), proposals, unrefined)
    assert {tuple(box) for box in boxes} <= {tuple(box) for box in proposals}


def write_inputs(folder, proposal_ids):
    (folder / "params.yaml").write_text(PARAMS)
    write_images(folder / "data/download/images/train/0.parquet", [noise_image(1), noise_image(2)])
    boxes = np.concatenate([random_boxes(k, 9) for k in proposal_ids])
    write_table(folder / "data/proposals/0.parquet", boxes_table(np.repeat(proposal_ids, 9), boxes))
    save_wspn(folder / "data/wspn/model.safetensors", tiny_wspn())


@pytest.fixture
def run_stage(tmp_path, monkeypatch):
    def run(proposal_ids):
        write_inputs(tmp_path, proposal_ids)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["ranking", "0"])
        stage.main()
        return tmp_path / "data/ranking/0.parquet"

    return run


def test_the_stage_writes_the_same_table_twice(run_stage):
    path = run_stage([1, 2])
    first = path.read_bytes()
    table = read_table(path)
    assert table.column_names == ["image_id", "x0", "y0", "x1", "y1", "score"]
    assert set(table["image_id"].to_pylist()) == {1, 2} and len(table) <= 10
    assert run_stage([1, 2]).read_bytes() == first


def test_an_image_without_proposals_is_named(run_stage):
    with pytest.raises(ValueError, match=r"proposals/0\.parquet: no row for image 2"):
        run_stage([1])


def test_falling_thresholds_are_refused(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.replace("[0.5, 0.7]", "[0.7, 0.5]"))
    with pytest.raises(ValueError, match=r"ranking\.nms_iou: .*must rise"):
        read_section("ranking", RankingParams, path)


class _Parts(Wspn):
    """A network that scores the second of three boxes best, a part that overlaps nothing else."""

    config = None
    device = torch.device("cpu")

    def extract_features(self, image, views):
        return ImageFeatures(None, np.ones(4, np.float32), image.shape[:2])

    def score_classes(self, features, boxes_xyxy):
        return torch.tensor([[0.3], [0.9], [0.3]])

    def score_objects(self, features, boxes_xyxy):
        raise AssertionError("neither quality nor regression is asked for")


def test_neighbours_agree_on_an_object_rather_than_a_part():
    boxes = np.array([[0, 0, 30, 30], [50, 50, 56, 56], [2, 2, 32, 32]], np.float32)
    image = np.zeros((64, 64, 3), np.uint8)
    changes = {"score": "classes", "refinements": 0, "nms_iou": [0.9]}
    alone = USUAL.model_copy(update=changes)
    agreed = AgreementSettings(neighbour_iou=0.3, power=0.25)
    together = alone.model_copy(update={"agreement": agreed})
    assert rank_proposals(_Parts(), image, boxes, alone)[0][0].tolist() == boxes[1].tolist()
    best, scores = rank_proposals(_Parts(), image, boxes, together)
    assert best[0].tolist() == boxes[0].tolist()
    # The first has itself and the third at IoU 784 / 1016; the part has itself alone.
    parts = [0.3**0.25 * (1 + 784 / 1016), 0.9**0.25]
    assert scores.max() == 1.0
    assert scores.min() == pytest.approx(parts[1] / parts[0])
