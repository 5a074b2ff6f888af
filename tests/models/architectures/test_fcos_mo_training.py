"""FCOS-MO is trained, kept and used through the interface of all detectors."""

from pathlib import Path

import numpy as np
import pytest
import torch

import stages.detector.__main__ as detector
import stages.finetune.__main__ as finetune
from flows.overlay import apply_profile
from stages.common.formats.categories import Category
from stages.common.runtime.curves import Curve
from stages.common.runtime.devices import choose_device
from stages.common.runtime.params import read_section
from stages.common.runtime.processes import run_in_processes
from stages.common.runtime.storage import read_json, read_tensors, write_json
from stages.detector.params import DetectorParams
from stages.evaluation.average_precision import KINDS, average_precision, precision_table
from stages.evaluation.protocols import Trial
from stages.models.detection.coco_results import to_results
from stages.models.detection.detector import Detector, LossSettings, load, predict, save
from stages.models.detection.params import TrainingParams
from stages.models.detection.samples import (
    Annotations,
    LabelledImage,
    label_images,
    training_sample,
)
from stages.models.detection.supervision import Source, Supervision
from stages.models.detection.training import train_detector
from tests.support.resumed_training import TRAINING_FILES, check_that_it_resumes
from tests.support.tiny_detector import (
    TRAINING,
    annotate,
    change_params,
    draw,
    learned_from,
    make_image,
    make_repository,
)
from tests.support.tiny_fcos_mo import LOSSES, NETWORK, RESNET, tiny_fcos_mo

IMAGE_IDS = [1, 2, 3]
LABELS = {3: 1, 5: 2}
START = {"architecture": "fcos_mo", "init": "random", "network": NETWORK}
OWN = TRAINING | {"loss_weights": LOSSES, "background_weight": 1.0}


def labelled(weights: list[float] | None = None) -> list[LabelledImage]:
    """Return three images with a disc and a box each, all of which weigh so much."""
    objects: dict[int, list[dict]] = {}
    for annotation in annotate(IMAGE_IDS)["annotations"]:
        objects.setdefault(annotation["image_id"], []).append(annotation)
    images = label_images(
        map(make_image, IMAGE_IDS), Annotations(objects, {}), LABELS, Path("labels.json")
    )
    if weights is None:
        return images
    own = np.array([weights] * 2, np.float32)
    return [LabelledImage(p.image, p.boxes_xyxy, p.labels, [None] * 2, own) for p in images]


def train(model: Detector, supervision: Supervision, **changes) -> list[dict]:
    """Train, and return the losses of every step."""
    curve, params = Curve(every=1), TrainingParams.model_validate(OWN | changes)
    train_detector(model, supervision, params, 7, curve)
    return curve.state()["rows"]


def test_it_learns_three_scenes_by_heart():
    model = tiny_fcos_mo()
    exactly = {"flip": False, "colour_jitter": 0.0, "batch_size": 3, "warmup_steps": 10}
    train(model, Supervision.of(labelled()), steps=200, learning_rate=0.005, **exactly)
    found, only_boxes = predict(model, [draw(k)[0] for k in IMAGE_IDS], [[0, 1], [1]])
    assert {label for own in only_boxes for label in own.labels.tolist()} == {1}
    truth, every = annotate(IMAGE_IDS), [0, 1]
    categories = [Category(3, "disc", "base", ("disc",)), Category(5, "box", "novel", ("box",))]
    trial = Trial("generalized", ("all",), categories, every, truth["images"], truth["annotations"])
    pairs = zip(IMAGE_IDS, found, strict=True)
    results = [row for image_id, own in pairs for row in to_results(image_id, own, [3, 5], 0.05)]
    for kind in KINDS:
        assert average_precision(precision_table(trial, results, kind, 100))["AP50"] > 90, kind


def test_boxes_alone_teach_everything_but_masks():
    model = tiny_fcos_mo()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    both = Supervision([Source("phrases", labelled([1.0, 1.0, 0.0]))])
    rows = train(model, both)
    assert [row["loss_mask"] for row in rows] == [0.0] * 4
    moved = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert not any(name.startswith("mask_head.") for name in moved)
    assert {"dense.edges.weight", "classifier_head.bias", "dense.scales"} <= moved


def test_nothing_found_is_no_fault():
    model = tiny_fcos_mo(inference=NETWORK["inference"] | {"score_threshold": 0.99})
    wide = np.zeros((40, 90, 3), np.uint8)
    ((small, large),) = predict(model, [draw(1)[0], wide], [[0, 1]])
    assert small.boxes_xyxy.shape == (0, 4) and large.masks.shape == (0, 40, 90)


def test_a_step_of_the_deepest_head_at_the_paper_s_size():
    head = {"depth": 52, "channels": 64, "crop_side": 32, "pixel_channels": 16}
    head |= {"instance_channels": 256, "objects_per_image": 8}
    model = tiny_fcos_mo(**RESNET | {"mask_head": head}).train()
    samples = [training_sample(p, np.random.default_rng(0), True, 0.1) for p in labelled()]
    images, targets = map(list, zip(*samples, strict=True))
    losses = model.losses(images, targets, LossSettings(None, 1.0))
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.mask_head.parameters()]
    assert all(own.isfinite().all() and own.any() for own in gradients)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    make_repository(tmp_path, OWN | {"steps": 6}, START)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["detector"])
    monkeypatch.setattr("stages.models.detection.training_run.STEPS_PER_ROW", 1)


def test_it_is_trained_kept_and_trained_on(repository, monkeypatch):
    detector.main()
    assert all(Path("data/detector", name).is_file() for name in TRAINING_FILES)
    path = Path("data/detector/model.safetensors")
    assert read_tensors(path)[1]["architecture"] == "fcos_mo"
    told = {k for k in read_json(Path("data/detector/metrics.json")) if k.startswith("loss_")}
    assert told == {f"loss_{name}" for name in LOSSES}
    before = load(path)
    save(Path("again.safetensors"), before)
    assert Path("again.safetensors").read_bytes() == path.read_bytes()
    monkeypatch.setattr("sys.argv", ["finetune"])
    finetune.main()
    for name, part in load(Path("data/finetune/model.safetensors")).parts().items():
        pairs = zip(before.parts()[name].parameters(), part.parameters(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs) == (name == "classifier"), name


def test_it_resumes_to_the_same_bytes(repository, monkeypatch):
    check_that_it_resumes(monkeypatch)


@pytest.mark.parametrize("parts", [("OVIS_PROCESSES", "2"), ("OVIS_MICRO_BATCH", "1")])
def test_it_trains_in_parts(repository, monkeypatch, parts):
    frozen = ["trunk", "pyramid"]  # which have batch norms
    change_params("detector", {"batch_size": 4, "steps": 3, "frozen": frozen})
    found = []
    for number, variable in enumerate((None, parts)):
        if variable:
            monkeypatch.setenv(*variable)
        output = Path(f"data/{number}")
        monkeypatch.setattr("sys.argv", ["detector", "--output", str(output)])
        run_in_processes("stages.detector.__main__", choose_device("device"), 4)
        found.append(load(output / "model.safetensors").state_dict())
    for name, value in found[1].items():
        torch.testing.assert_close(value, found[0][name], rtol=1e-3, atol=1e-4, msg=name)


def test_masks_that_no_process_has_move_no_weight(repository, monkeypatch):
    sources = learned_from("phrases", "base_masks", negatives="source")
    sources["draw"] = "in_turn"
    for own, fraction in zip(sources["sources"], (0.9, 0.1), strict=True):
        own["fraction"] = fraction
        write_json(Path(f"data/supervision/{own['name']}.json"), annotate(IMAGE_IDS))
    change_params("detector", {"steps": 5}, supervision=sources)  # the sixth is of base_masks
    monkeypatch.setattr("sys.argv", ["detector", "--output", "data/one"])
    detector.main()
    monkeypatch.setenv("OVIS_PROCESSES", "2")
    monkeypatch.setattr("sys.argv", ["detector", "--output", "data/two"])
    run_in_processes("stages.detector.__main__", choose_device("device"), 2)
    one, two = (load(Path(f"data/{k}/model.safetensors")).mask_head for k in ("one", "two"))
    for own, other in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(own, other)


def test_the_profile_fits(tmp_path):
    root = Path(__file__).parents[3]
    (tmp_path / "experiments").mkdir()
    for name in ("params.yaml", "experiments/fcos-mo.yaml"):
        (tmp_path / name).write_text((root / name).read_text())
    apply_profile(tmp_path, "fcos-mo")
    params = read_section("detector", DetectorParams, tmp_path / "params.yaml")
    assert params.network.mask_head.depth == 20
