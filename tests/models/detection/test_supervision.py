"""Sources of supervision: what a batch is drawn from, and what each object teaches."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import stages.finetune.__main__ as finetune
from stages.common.runtime.curves import Curve
from stages.common.runtime.prefetch import prefetch
from stages.common.runtime.storage import read_json, write_json
from stages.models.detection.detector import LossSettings, save, to_unit_range
from stages.models.detection.params import SourceParams, SupervisionParams, TrainingParams
from stages.models.detection.samples import (
    LabelledImage,
    batch_rows,
    expand_boxes,
    label_images,
    read_annotations,
    training_sample,
)
from stages.models.detection.supervision import Source, Supervision
from stages.models.detection.training import train_detector
from tests.support.tiny_detector import (
    TRAINING,
    annotate,
    change_params,
    draw,
    make_image,
    make_repository,
    supervision,
    tiny_detector,
)
from tests.support.train_in_parts import labelled_images

LABELS = {3: 1, 5: 2}
SETTINGS = LossSettings(None, 0.5)


def images(name: str, count: int) -> list[str]:
    return [f"{name}{number}" for number in range(count)]


def source(name: str, count: int, fraction: float) -> Source:
    """Return a source of stand-ins, for what draws images does not look at them."""
    blank = np.zeros((1, 4), np.float32)
    entries = [LabelledImage(n, blank, np.ones(1, np.int64), [None]) for n in images(name, count)]
    return Source(name, entries, fraction)


def drawn(supervision: Supervision, step: int, batch_size: int = 8) -> list[str]:
    return [entry.image for entry in supervision.batch(step, batch_size, seed=3)]


def test_one_source_draws_as_ever():
    (entries,) = (own.images for own in [source("a", 10, 1.0)])
    for step in range(4):
        expected = [entries[row].image for row in batch_rows(step, 8, 10, 3)]
        assert drawn(Supervision.of(entries), step) == expected


def test_a_batch_has_each_sources_fraction_and_an_epoch_each_of_its_images():
    both = Supervision([source("a", 12, 0.75), source("b", 4, 0.25)])
    batches = [drawn(both, step) for step in range(2)]
    assert [Counter(name[0] for name in batch) for batch in batches] == [{"a": 6, "b": 2}] * 2
    assert sorted([*batches[0], *batches[1]]) == sorted(images("a", 12) + images("b", 4))


def test_sources_may_take_turns():
    turns = Supervision([source("a", 8, 0.5), source("b", 8, 0.5)], "in_turn")
    batches = [drawn(turns, step, 4) for step in range(4)]
    assert [{name[0] for name in batch} for batch in batches] == [{"a"}, {"b"}, {"a"}, {"b"}]
    assert sorted(batches[0] + batches[2]) == images("a", 8)


def test_turns_are_the_same_whichever_thread_draws_them_and_wherever_a_training_resumes():
    sources = [source("a", 8, 0.5), source("b", 8, 0.5)]
    right = [Supervision(sources, "in_turn").batch(step, 2, 0) for step in range(700)]
    for first in (0, 300, 600) * 5:
        steps, turns = range(first, first + 12), Supervision(sources, "in_turn")
        assert [*prefetch(lambda step, own=turns: own.batch(step, 2, 0), steps, 3)] == right[
            first : first + 12
        ]


@pytest.mark.parametrize(
    ("fractions", "batch_size", "counts"),
    [((0.5, 0.5), 8, [4, 4]), ((0.7, 0.3), 4, [3, 1]), ((1 / 3, 1 / 3, 1 / 3), 8, [3, 3, 2])],
)
def test_fractions_are_rounded_to_whole_images(fractions, batch_size, counts):
    sources = [source(str(k), 3, fraction) for k, fraction in enumerate(fractions)]
    assert Supervision(sources).counts(batch_size) == counts


def test_a_batch_without_an_image_of_a_source_is_refused():
    with pytest.raises(ValueError, match="a batch of 4 images has none of b; raise its fraction"):
        Supervision([source("a", 3, 0.95), source("b", 3, 0.05)]).counts(4)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([("a", 0.5), ("b", 0.4)], "fractions that add up to 1, found 0.9"),
        ([("a", 0.5), ("a", 0.5)], "each name once, found \\['a', 'a'\\]"),
    ],
)
def test_sources_that_make_no_whole_are_refused(sources, message):
    content = [supervision(name, fraction=part)["sources"][0] for name, part in sources]
    with pytest.raises(ValueError, match=message):
        SupervisionParams.model_validate({"draw": "together", "sources": content})


@pytest.mark.parametrize("name", ["base_masks", "novel_boxes", "novel_masks", "phrases"])
def test_what_has_no_scores_is_not_weighed_by_them(name):
    (content,) = supervision(name, weigh_by_score=True)["sources"]
    with pytest.raises(ValueError, match=f"{name}: has no scores; set weigh_by_score to false"):
        SourceParams.model_validate(content)
    SourceParams.model_validate(content | {"name": "pseudo_masks"})


def read(tmp_path: Path, annotations: dict, **changes) -> list[LabelledImage]:
    path, params = tmp_path / "labels.json", supervision("labels", **changes)["sources"][0]
    write_json(path, annotations)
    params = SourceParams.model_validate(params)
    found = read_annotations(path, LABELS, [3, 5, 9], need_masks="mask" in params.teaches)
    images = map(make_image, sorted(found.objects))
    return label_images(images, found, LABELS, path, params)


def test_objects_weigh_what_their_source_and_their_score_say(tmp_path):
    content = annotate([1, 2])  # two objects each
    for annotation, score in zip(content["annotations"], (5.0, 30.0, 25.0), strict=False):
        annotation["score"] = score  # 20 on average
    plain, _ = read(tmp_path, content)
    assert plain.weights is None
    assert "weights" not in training_sample(plain, np.random.default_rng(0), False, 0.0)[1]
    scored = read(tmp_path, content, weigh_by_score=True)
    assert [own.weights.tolist() for own in scored] == [
        [[0.25] * 3, [1.5] * 3],
        [[1.25] * 3, [1.0] * 3],
    ]
    chosen, _ = read(tmp_path, content, teaches={"class": 1.0, "mask": 0.5}, weigh_by_score=True)
    assert chosen.weights.tolist() == [[0.25, 0, 0.125], [1.5, 0, 0.75]]


def test_an_object_without_a_mask_teaches_class_and_box(tmp_path):
    content = annotate([1])
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    with pytest.raises(ValueError, match="2 of 2 annotations are unusable"):
        read(tmp_path, content)
    (entry,) = read(tmp_path, content, teaches={"class": 1.0, "box": 1.0})
    assert entry.weights.tolist() == [[1, 1, 0]] * 2
    target = training_sample(entry, np.random.default_rng(0), False, 0.0)[1]
    assert target["masks"].shape == (2, 64, 64) and not target["masks"].any()


def test_edges_are_moved_outwards_to_the_lines_of_a_grid():
    # An image of 80×40 pixels: with 4 cells a side they are 20×10 pixels, with 8 they are 10×5.
    boxes = np.array([[21.0, 11, 39, 12]] * 3 + [[20.0, 10, 40, 30]], np.float32)
    found = expand_boxes(boxes, np.array([4, 8, 0, 4]), (40, 80))
    expected = [[20, 10, 40, 20], [20, 10, 40, 15], [21, 11, 39, 12], [20, 10, 40, 30]]
    assert found.tolist() == expected and found.dtype == np.float32


SIDES = st.integers(1, 3000)
FRACTIONS = st.floats(0, 1, width=32)


@given(SIDES, SIDES, st.integers(0, 64), st.lists(FRACTIONS, min_size=4, max_size=4))
def test_an_expanded_box_contains_the_box_and_stays_in_the_image(height, width, cells, edges):
    x0, x1, y0, y1 = (*sorted(edges[:2]), *sorted(edges[2:]))
    box = np.array([[x0 * width, y0 * height, x1 * width, y1 * height]], np.float32)
    (wide,) = expand_boxes(box, np.array([cells]), (height, width))
    assert (wide[:2] <= box[0, :2]).all() and (wide[2:] >= box[0, 2:]).all()
    assert wide.min() >= 0 and wide[2] <= width and wide[3] <= height


def test_a_step_draws_for_the_grid_only_where_there_is_one(tmp_path):
    (plain,), (loose,) = (read(tmp_path, annotate([1]), box_grids=own) for own in ([], [0, 2]))
    random, same = np.random.default_rng(3), np.random.default_rng(3)
    _, target = training_sample(plain, random, False, 0.1)
    same.normal(0, 0.1, (2, 3, 1, 1))
    assert random.random() == same.random()
    assert target["boxes"].tolist() == plain.boxes_xyxy.tolist()
    found = {
        tuple(training_sample(loose, np.random.default_rng(k), False, 0.1)[1]["boxes"][0].tolist())
        for k in range(20)
    }
    half = {
        tuple(32.0 * np.array([*np.floor(box[:2] / 32), *np.ceil(box[2:] / 32)]))
        for box in loose.boxes_xyxy[:1]
    }
    assert found == half | {tuple(plain.boxes_xyxy[0].tolist())}


def test_a_source_says_which_classes_it_looked_for(tmp_path):
    content = annotate([1, 2])
    del content["annotations"][0]  # the disc of the first
    for negatives, expected in {"all": [None, None], "source": [{1, 2}] * 2}.items():
        assert [own.annotated for own in read(tmp_path, content, negatives=negatives)] == expected
    first, second = read(tmp_path, content, negatives="image")
    assert (first.annotated, second.annotated) == ({2}, {1, 2})
    target = training_sample(first, np.random.default_rng(0), False, 0.0)[1]
    assert target["annotated"].tolist() == [2]
    images = read(tmp_path, content, negatives="batch")
    shared = Supervision([Source("phrases", images, shared_negatives=True)])
    both = [shared.batch(step, 1, 0)[0].annotated for step in range(2)]
    assert sorted(both, key=len) == [{2}, {1, 2}]
    assert [own.annotated for own in shared.batch(0, 2, 0)] == [{1, 2}, {1, 2}]
    with pytest.raises(ValueError, match=r"mask_rcnn treats classes .* negatives to all in each"):
        params = TrainingParams.model_validate(TRAINING)
        train_detector(tiny_detector(), Supervision.of([first]), params, 7, Curve(every=1))


def losses(weights: list[list[float]] | None) -> dict[str, float]:
    """Return the losses of a disc and a box that weigh so much, of the same samples each time."""
    image, masks = draw(1)
    boxes = [a["bbox"] for a in annotate([1])["annotations"]]
    target = {
        "boxes": torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes]),
        "labels": torch.tensor([1, 2]),
        "masks": torch.from_numpy(np.stack([masks[3], masks[5]]).astype(np.uint8)),
    }
    if weights is not None:
        target["weights"] = torch.tensor(weights)
    model = tiny_detector().train()
    torch.manual_seed(0)
    found = model.losses([to_unit_range(image)], [target], SETTINGS)
    return {name: loss.item() for name, loss in found.items()}


def test_weights_of_one_change_nothing():
    assert losses([[1.0] * 3] * 2) == pytest.approx(losses(None), rel=1e-5)


def test_an_aspect_that_weighs_half_has_half_the_loss():
    whole, half = losses([[1.0] * 3] * 2), losses([[1.0, 0.5, 0.5]] * 2)
    for name in ("box", "mask", "proposal_box"):
        assert half[name] == pytest.approx(whole[name] / 2, rel=1e-5), name
    assert half["classification"] == whole["classification"]
    assert whole["objectness"] / 2 < half["objectness"] < whole["objectness"]  # background is whole


def test_each_loss_is_the_sum_of_what_the_objects_teach():
    whole = losses([[1.0] * 3] * 2)
    disc, box = (losses([[own, 1, own], [1 - own, 1, 1 - own]]) for own in (1.0, 0.0))
    nothing = losses([[0.0, 1, 0.0]] * 2)
    assert disc["mask"] + box["mask"] == pytest.approx(whole["mask"], rel=1e-5)
    assert 0 < disc["mask"] < whole["mask"] and nothing["mask"] == 0
    background = nothing["classification"]
    own = disc["classification"] + box["classification"] - background
    assert own == pytest.approx(whole["classification"], rel=1e-5)


def test_a_box_that_is_not_taught_is_ignored_by_the_proposals():
    model = tiny_detector()
    anchors = [torch.tensor([[0.0, 0, 10, 10], [30, 30, 40, 40], [50, 0, 60, 10]])]
    target = {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [30, 30, 41, 40]]),
        "labels": torch.tensor([1, 2]),
        "weights": torch.tensor([[1.0, 1, 1], [1, 0, 1]]),
    }
    assert model.proposals.assign_targets_to_anchors(anchors, [target])[0][0].tolist() == [1, -1, 0]


def test_a_training_with_weights_repeats_itself_in_micro_batches(monkeypatch):
    weights = np.array([[1.0, 0.5, 0.25]], np.float32)
    entries = labelled_images()
    entries[0] = LabelledImage(
        *(getattr(entries[0], k) for k in ("image", "boxes_xyxy", "labels", "segmentations")),
        weights,
    )
    rows = []
    for size in ("5", "2"):
        monkeypatch.setenv("OVIS_MICRO_BATCH", size)
        changes = {"steps": 3, "batch_size": 5, "frozen": ["trunk", "pyramid"]}
        params, curve = TrainingParams.model_validate(TRAINING | changes), Curve(every=1)
        train_detector(tiny_detector(), Supervision.of(entries), params, 7, curve)
        rows.append(curve.state()["rows"])
    for whole, parts in zip(*rows, strict=True):
        assert parts == pytest.approx(whole, rel=2e-3, abs=2e-4)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    make_repository(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["stage"])
    save(Path("data/detector/model.safetensors"), tiny_detector())


def test_finetuning_also_learns_from_pseudo_labels_of_all_classes(repository):
    sources = [supervision(n, fraction=0.5)["sources"][0] for n in ("ground_truth", "pseudo_masks")]
    content = {"draw": "together", "sources": sources}
    change_params("finetune", supervision=content, vocabulary="all")
    finetune.main()
    metrics = read_json(Path("data/finetune/metrics.json"))
    assert (metrics["images"], metrics["objects"]) == (9, 5 + 8)
    assert metrics["sources"]["ground_truth"]["objects"] == 5


@given(st.lists(st.floats(0.05, 1), min_size=1, max_size=4))
def test_turns_follow_the_fractions(fractions):
    sources = [source(str(k), 2, fraction) for k, fraction in enumerate(fractions)]
    turns = Supervision(sources, "in_turn")
    taken = [int(turns.batch(step, 1, 0)[0].image[0]) for step in range(40)]
    for k, fraction in enumerate(fractions):
        assert abs(taken.count(k) - 40 * fraction / sum(fractions)) <= len(fractions)
