"""Training the proposal network on an ImageNet backbone: losses by hand, streaming, resuming."""

import math
import threading
import weakref
from functools import partial

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from torchvision.models import resnet50

from stages.common.formats import images
from stages.common.formats.tables import boxes_table
from stages.common.runtime import checkpoints
from stages.common.runtime.checkpoints import Checkpoint
from stages.common.runtime.curves import Curve
from stages.common.runtime.params import read_section
from stages.common.runtime.prefetch import prefetch
from stages.common.runtime.storage import (
    read_json,
    read_table,
    read_tensors,
    write_json,
    write_table,
    write_tensors,
)
from stages.models.backbones.imagenet import freeze_stages
from stages.models.proposals.file import load_wspn
from stages.models.proposals.imagenet import Outputs
from stages.models.proposals.views import view_input
from stages.ranking import __main__ as ranking_stage
from stages.wspn import __main__ as wspn_stage
from stages.wspn import end_to_end, stream
from stages.wspn.end_to_end import ViewStream, train_end_to_end
from stages.wspn.params import WspnParams
from stages.wspn.refine import image_losses, refinement_loss, refinement_targets
from stages.wspn.stream import ImageStream
from tests.support.boxes import WHOLE_AND_PART, random_boxes
from tests.support.images import noise_image
from tests.support.tiny_wspn import WSPN_SECTION, imagenet_wspn, write_wspn_shards

RANKING = """
ranking:
  top_k: 5
  score: classes
  agreement: {neighbour_iou: 1.0, power: 1.0}
  scored: box
  refinements: 1
  keep_proposals: false
  nms_iou: [0.3]
  views: {shorter_sides: [48], longer_side: 64, flip: false}
"""
PARAMS = WspnParams.model_validate(YAML(typ="safe").load(WSPN_SECTION)["wspn"])


def test_targets_by_hand():
    scores = torch.tensor([[0.5, 0.8], [0.9, 0.8], [0.4, 0.8], [0.3, 0.8]])
    boxes, other = torch.from_numpy(WHOLE_AND_PART), scores.flip(0)

    def learn(labels):
        return refinement_targets([scores, other], boxes, np.array(labels), PARAMS.seeds, 0.5)

    target, reversed_targets = learn([1.0, 0.0])
    # seeds of the named class are 1 and 3; the part overlaps 1 by 0.278 only: background
    assert target.classes.tolist() == [1, 1, 0, 1]
    assert target.weights.tolist() == pytest.approx([0.9, 0.9, 0.9, 0.3])
    assert target.overlap.tolist() == pytest.approx([0.9, 1.0, 100 / 360, 1.0])
    assert target.offsets[1].tolist() == [0.0] * 4
    # by the other scores they are 2 and 3: it is the wholes that are background
    assert reversed_targets.classes.tolist() == [0, 0, 1, 1]
    assert reversed_targets.weights.tolist() == pytest.approx([0.9, 0.9, 0.9, 0.5])
    both, _ = learn([1.0, 1.0])
    assert both.classes.tolist() == [2, 1, 0, 1]  # the second class' first seed is box 0
    assert learn([0.0, 0.0]) == []

    classification, regression = refinement_loss(torch.zeros(4, 3), torch.zeros(4, 4), target, 2.0)
    assert classification.item() == pytest.approx(math.log(3) * (0.9 * 3 + 0.3) / 4)
    # box 0 to box 1: the centre moves by -1/20 times 10, the height by log(18/20) times 5
    smooth = 0.5 * 0.5**2 + 0.5 * (5 * math.log(0.9)) ** 2
    log_part = 5 * abs(math.log(0.9))
    assert log_part < 1  # so both are in the quadratic part
    assert regression.item() == pytest.approx(2.0 * 0.9 * smooth / 4, rel=1e-5)


def outputs_of_zeros(count: int) -> Outputs:
    zeros = torch.zeros(count, 2)
    refined = [torch.zeros(count, 3)] * 2
    return Outputs(zeros, zeros, refined, [torch.zeros(count, 4)] * 2, torch.zeros(count))


def test_losses_of_an_image_by_hand():
    def losses(labels):
        return image_losses(
            outputs_of_zeros(4),
            torch.from_numpy(WHOLE_AND_PART),
            np.array(labels, np.float32),
            PARAMS.end_to_end,
            PARAMS.seeds,
            PARAMS.localise,
        )

    # four proposals, two classes: p_c = 1/2; without a label there is nothing to refine with
    only = losses([0, 0])
    assert only.keys() == {"image_labels"}
    assert only["image_labels"].item() == pytest.approx(0.5 * 2 * math.log(2))
    found = losses([1, 0])
    # equal scores: the first box is a seed, 2 overlaps it by 0.25, 3 not at all: seeds 0 and 3
    assert found["classes_0"].item() == pytest.approx(3.0 * math.log(3) / 8)  # scores 1/2 · 1/4
    assert found["classes_1"].item() == pytest.approx(math.log(3) / 3)  # scores of the first: 1/3
    assert found["quality"].item() == pytest.approx(math.log(2))  # all overlap a seed by 0.1
    assert found["regression_0"] > 0


def train(model, stream, labels, params, seed, curve, checkpoint=None):
    """Train as the stage does."""
    run, limit = params.end_to_end, params.proposals_per_image
    num_classes = len(model.config.category_ids)
    views = ViewStream(stream, labels, num_classes, run.views, limit, seed)
    losses = partial(image_losses, training=run, seeds=params.seeds, localise=params.localise)
    freeze_stages(model.trunk, params.model.backbone.frozen_stages)
    train_end_to_end(model, views, losses, run, seed, curve, checkpoint)


@pytest.mark.usefixtures("true_bfloat16")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_reach_all_that_is_not_frozen(precision):
    model = imagenet_wspn()
    stream = [(noise_image(1), random_boxes(1, 9)), (noise_image(2), random_boxes(2, 9))]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = PARAMS.end_to_end.model_copy(update={"steps": 1, "precision": precision})
    params = PARAMS.model_copy(update={"end_to_end": run})
    labels = {1: np.array([1, 0], np.float32)}  # image 2 has no caption
    train(model, FixedStream(stream), labels, params, 0, Curve(every=1))
    for name, parameter in model.named_parameters():
        frozen = name.startswith("trunk.") and not name.startswith("trunk.layer4")
        assert (parameter.grad is None) == frozen, name
        assert torch.equal(parameter, before[name]) == frozen, name
    assert not model.training


class FixedStream:
    """Stands in for a stream: the same batch at every step."""

    def __init__(self, batch):
        self._batch = batch

    def batch(self, step, batch_size, seed):
        return self._batch


def test_an_epoch_shows_each_image_once_with_its_own_boxes(tmp_path, monkeypatch):
    shards, tables = write_wspn_shards(tmp_path, monkeypatch, (24, 19))
    monkeypatch.setattr(stream, "KEPT_BLOCKS", 4)
    chosen = set(range(1, 44)) - {4, 5, 6}
    streamed = ImageStream(shards, tables, chosen)
    assert len(streamed) == 40
    seen, given = [], []
    for step in range(20):
        for found, boxes in streamed.batch(step, 4, seed=1):
            assert np.array_equal(boxes, random_boxes(found.image_id, 9))
            assert found.encoded == noise_image(found.image_id).encoded
            seen.append(found.image_id)
            given.append(weakref.ref(found))
        assert sum(image() is not None for image in given) <= 4 * images.ROW_GROUP
    assert set(seen[:40]) == set(seen[40:]) == chosen and seen[:40] != seen[40:]
    later = ImageStream(shards, tables, chosen).batch(15, 4, seed=1)
    assert [found.image_id for found, _ in later] == seen[60:64]
    assert [p.image_id for p, _ in streamed.batch(0, 4, seed=2)] != seen[:4]


def test_an_image_without_proposals_is_named(tmp_path, monkeypatch):
    shards, tables = write_wspn_shards(tmp_path, monkeypatch)
    write_table(tables[1], boxes_table(np.full(9, 11), random_boxes(11, 9)))
    with pytest.raises(ValueError, match=r"proposals/1\.parquet: no row for image 12"):
        ImageStream(shards, tables, range(1, 16))
    with pytest.raises(ValueError, match="none of the chosen images"):
        ImageStream(shards, tables, [99])


def test_views_are_made_ahead_and_as_if_one_by_one(monkeypatch):
    """What an image's view is depends on its place alone, not on the thread that makes it."""
    stream = [(noise_image(k), random_boxes(k, 9)) for k in (1, 2)]
    labels = {k: np.array([1, 0], np.float32) for k in (1, 2)}
    run = PARAMS.end_to_end.model_copy(update={"steps": 2})
    params = PARAMS.model_copy(update={"end_to_end": run})
    made = {}

    def note(image, side, longer_side, flip):
        made.setdefault(threading.current_thread().name.split("_")[0], []).append((side, flip))
        return view_input(image, side, longer_side, flip)

    monkeypatch.setattr(end_to_end, "view_input", note)
    results = []
    for ahead in (8, 1):
        monkeypatch.setattr(
            end_to_end, "prefetch", lambda make, items, n=ahead: prefetch(make, items, n)
        )
        model, curve = imagenet_wspn(), Curve(every=1)
        train(model, FixedStream(stream), labels, params, 0, curve)
        results.append((curve.state()["rows"], model.state_dict()))
    assert set(made) == {"prefetch"} and len(set(made["prefetch"])) > 1
    (curve, weights), (other_curve, others) = results
    assert curve == other_curve and len(curve) == 2
    assert all(torch.equal(value, others[name]) for name, value in weights.items())


class KilledError(Exception):
    pass


class KilledCurve(Curve):
    """Kills the training at the end of its third step."""

    def add(self, step, **scalars):
        if step == 3:
            raise KilledError
        return super().add(step, **scalars)


def test_a_killed_training_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "ROOT", tmp_path)
    batch, labels = [(noise_image(1), random_boxes(1, 4))], {1: np.array([1, 1], np.float32)}
    run = PARAMS.end_to_end.model_copy(update={"steps": 3, "batch_size": 1})
    params = PARAMS.model_copy(update={"end_to_end": run})

    def train_again(checkpoint, curve):
        model = imagenet_wspn()
        train(model, FixedStream(batch), labels, params, 0, curve, checkpoint)
        return model.state_dict(), curve.state()

    weights, curve = train_again(None, Curve(every=1))
    with pytest.raises(KilledError):
        train_again(Checkpoint("run", 0.0), KilledCurve(every=1))
    _, header = read_tensors(tmp_path / "run/state.safetensors")
    assert header["step"] == 2
    resumed, resumed_curve = train_again(Checkpoint("run", 0.0), Curve(every=1))
    assert all(torch.equal(value, resumed[name]) for name, value in weights.items())
    assert curve == resumed_curve and [row["step"] for row in curve["rows"]] == [1, 2, 3]


def test_no_label_and_a_loss_that_is_no_number_are_errors(tmp_path):
    stream = FixedStream([(noise_image(1), random_boxes(1, 9))] * 2)
    model = imagenet_wspn()
    with pytest.raises(ValueError, match="no training image has an image label"):
        train(model, stream, {1: np.zeros(2)}, PARAMS, 0, Curve(every=1))
    with torch.no_grad():
        model.quality_part.bias.fill_(math.nan)
    with pytest.raises(ValueError, match=r"losses of step 1 .*lower wspn\.end_to_end\.learning"):
        train(model, stream, {1: np.ones(2, np.float32)}, PARAMS, 0, Curve(every=1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "kind: resnet50\n      weights: null",
            "kind: vlm\n      weights: a.pth",
            "kind vlm takes its",
        ),
        ("sha256: null", "sha256: '00'", "sha256 is given, but weights is null"),
        ("kind: resnet50", "kind: resnet18", r"backbone\.kind: .*'vlm', 'resnet50' or 'vgg16'"),
        ("frozen_stages: 4", "frozen_stages: 6", r"frozen_stages: .*less than or equal to 5"),
    ],
)
def test_a_wrong_backbone_is_refused(tmp_path, old, new, message):
    path = tmp_path / "params.yaml"
    assert old in WSPN_SECTION
    path.write_text(WSPN_SECTION.replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_section("wspn", WspnParams, path)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with all that the stages `wspn` and `ranking` read; the vlm is a pretrained one."""
    write_wspn_shards(tmp_path, monkeypatch, (3,))
    kinds = [("dog", "base"), ("cup", "base"), ("bird", "novel")]
    write_json(
        tmp_path / "data/download/categories.json",
        [
            {"id": k, "name": name, "split": split, "forms": [name]}
            for k, (name, split) in enumerate(kinds, 3)
        ],
    )
    captions = {1: ["a dog and a bird"], 2: ["a cup"], 3: ["the sky"]}
    write_json(
        tmp_path / "data/download/captions/train/0.json",
        [{"image_id": k, "captions": texts} for k, texts in captions.items()],
    )
    torch.manual_seed(1)
    torch.save(resnet50(weights=None).state_dict(), tmp_path / "resnet50.pth")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEVICE", "cpu")
    return tmp_path


def run(stage, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["stage", *arguments])
    stage.main()


def test_both_stages_run_beside_a_pretrained_vision_language_model(project, monkeypatch):
    write_tensors(
        project / "data/vlm/model.safetensors", {"weight": torch.zeros(1)}, {"kind": "blip"}
    )
    section = WSPN_SECTION.replace("weights: null", "weights: resnet50.pth").replace(
        "steps: 4", "steps: 1"
    )
    params = project / "params.yaml"
    params.write_text(f"seed: 0\ndeterministic: device\nshards: [0]\n{section}{RANKING}")
    run(wspn_stage, monkeypatch)
    metrics = read_json(project / "data/wspn/metrics.json")
    assert metrics["images"] == 3 and metrics["images_with_label"] == 2
    assert metrics["weights_left_out"] == {"batch_counts": 53, "imagenet_classifier": 2}
    assert load_wspn(project / "data/wspn/model.safetensors").config.category_ids == [3, 4]
    assert not any((project / ".resume").glob("*"))
    run(ranking_stage, monkeypatch, "0")
    table = read_table(project / "data/ranking/0.parquet")
    assert set(table["image_id"].to_pylist()) == {1, 2, 3}

    text = params.read_text()
    annotated = text.replace("image_labels: captions", "image_labels: annotations")
    labels = project / "data/download/annotations/train/0.json"
    write_json(labels, [{"image_id": k, "category_ids": [4]} for k in (1, 2, 3)])
    params.write_text(annotated)
    run(wspn_stage, monkeypatch)
    assert read_json(project / "data/wspn/metrics.json")["images_with_label"] == 3
    every = ["--label-splits", "base", "novel", "--output", "data/wsddn_network"]
    run(wspn_stage, monkeypatch, *every)  # of all classes there are captions only
    assert read_json(project / "data/wsddn_network/metrics.json")["images_with_label"] == 2
    write_json(labels, [])
    with pytest.raises(ValueError, match=r"nobody has annotated .*image_labels to captions"):
        run(wspn_stage, monkeypatch)
    params.write_text(text.replace("weights: resnet50.pth", "weights: other.pth"))
    with pytest.raises(FileNotFoundError, match=r"wspn\.model\.backbone\.weights: .*other\.pth"):
        run(wspn_stage, monkeypatch)
    small = text.replace("weights: resnet50.pth", "weights: null").replace(
        "kind: resnet50", "kind: vlm"
    )
    params.write_text(small)
    with pytest.raises(ValueError, match=r"holds blip, .*wspn\.model\.backbone\.kind to resnet50"):
        run(wspn_stage, monkeypatch)
