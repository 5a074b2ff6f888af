"""The hourglass, and what it promises in every architecture that has it."""

import copy
from itertools import chain
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import stages.detector.__main__ as detector
import stages.finetune.__main__ as finetune
from stages.common.runtime.devices import choose_device
from stages.common.runtime.processes import run_in_processes
from stages.common.runtime.storage import read_json, write_json
from stages.models.detection.detector import LossSettings, load, save
from stages.models.detection.hourglass_head import hourglass, mask_terms
from stages.models.detection.samples import training_sample
from stages.models.detection.supervision import Source, Supervision
from tests.support.receptive_fields import make_even
from tests.support.resumed_training import TRAINING_FILES, check_that_it_resumes
from tests.support.tiny_detector import (
    annotate,
    change_params,
    draw,
    learned_from,
    make_repository,
    predict,
)
from tests.support.tiny_hourglass import CASES, IMAGE_IDS, Case, labelled, train


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


@pytest.mark.parametrize("depth", [10, 20, 32, 52])
def test_a_deep_mask_head_is_as_deep_as_it_says_and_sees_straight(depth):
    network = hourglass(depth, inputs=3, channels=8)
    longest = [
        module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
        and not {"beside", "skip"} & set(name.split("."))
        and module.kernel_size != (1, 1)
    ]
    assert len(longest) == depth
    for norm in (m for m in network.modules() if isinstance(m, nn.GroupNorm)):
        norm.forward = lambda x: x
    # Every cell of the last row and of the first see mirrored parts of the crop.
    make_even(network)
    crop = torch.rand(1, 3, 32, 32)
    flipped = network(crop.flip(2, 3)).flip(2, 3)
    torch.testing.assert_close(network(crop), flipped, rtol=1e-3, atol=1e-4)


def test_a_cell_s_goal_is_the_fraction_that_the_object_covers():
    # Two cells a side of a box of 8 pixels: all, half, a quarter and nothing of them.
    mask = torch.zeros(1, 12, 12, dtype=torch.uint8)
    mask[0, 2:6, 2:6], mask[0, 2:6, 6:8], mask[0, 6:8, 2:4] = 1, 1, 1
    logits = torch.zeros(1, 2, 2, requires_grad=True)
    terms = mask_terms(logits, [torch.tensor([[2.0, 2, 10, 10]])], [mask])
    assert terms.tolist() == pytest.approx([log(2)])
    (gradient,) = torch.autograd.grad(terms.sum(), logits)
    # The derivative of the cross-entropy is p less the goal, here of a mean over four cells.
    torch.testing.assert_close(0.5 - 4 * gradient[0], torch.tensor([[1.0, 0.5], [0.25, 0.0]]))


def test_boxes_alone_teach_everything_but_masks(case):
    model = case.build()
    before = copy.deepcopy(model).parts()
    both = Supervision([Source("phrases", labelled([1.0, 1.0, 0.0]))])
    rows = train(case, model, both)
    assert [row["loss_mask"] for row in rows] == [0.0] * 4
    still = {name for name, part in model.parts().items() if same(part, before[name])}
    assert still == {"mask_head"}


def same(one: nn.Module, other: nn.Module) -> bool:
    """Return whether all parameters are equal."""
    return all(map(torch.equal, one.parameters(), other.parameters()))


def test_a_step_of_the_deepest_head_at_the_paper_s_size(case):
    head = {"depth": 52, "channels": 64, "crop_side": 32, "pixel_channels": 16}
    head |= {"instance_channels": 256, "objects_per_image": 8}
    own = case.start["network"]["mask_head"]
    model = case.build(**case.resnet | {"mask_head": own | head}).train()
    samples = [training_sample(p, np.random.default_rng(0), True, 0.1) for p in labelled()]
    images, targets = map(list, zip(*samples, strict=True))
    losses = model.losses(images, targets, LossSettings(None, 1.0))
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.parts()["mask_head"].parameters()]
    assert all(own.isfinite().all() and own.any() for own in gradients)


@pytest.fixture
def repository(case, tmp_path, monkeypatch):
    make_repository(tmp_path, case.training | {"steps": 6}, case.start)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["detector"])
    monkeypatch.setattr("stages.models.detection.training_run.STEPS_PER_ROW", 1)


def test_it_is_trained_kept_and_trained_on(case, repository, monkeypatch):
    detector.main()
    assert all(Path("data/detector", name).is_file() for name in TRAINING_FILES)
    path = Path("data/detector/model.safetensors")
    told = {k for k in read_json(Path("data/detector/metrics.json")) if k.startswith("loss_")}
    assert told == {f"loss_{name}" for name in case.training["loss_weights"]}
    before = load(path)
    assert before.architecture == case.start["architecture"]
    save(Path("again.safetensors"), before)
    assert Path("again.safetensors").read_bytes() == path.read_bytes()
    monkeypatch.setattr("sys.argv", ["finetune"])
    finetune.main()
    for name, part in load(Path("data/finetune/model.safetensors")).parts().items():
        assert same(part, before.parts()[name]) == (name == "classifier"), name


def test_it_resumes_to_the_same_bytes(repository, monkeypatch):
    check_that_it_resumes(monkeypatch)


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("fcos_mo", ("OVIS_PROCESSES", "2")),  # starting them takes longer than what they do
        ("fcos_mo", ("OVIS_MICRO_BATCH", "1")),
        ("mask_rcnn", ("OVIS_MICRO_BATCH", "1")),
    ],
    indirect=["case"],
)
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


@pytest.mark.parametrize("case", ["mask_rcnn"], indirect=True)
def test_masks_that_no_process_has_move_no_weight(repository, monkeypatch):
    sources = learned_from("phrases", "base_masks")
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
    one, two = (
        load(Path(f"data/{k}/model.safetensors")).parts()["mask_head"] for k in ("one", "two")
    )
    assert same(one, two)


def test_a_saved_detector_draws_the_same_masks_of_every_size(case, tmp_path):
    model, path = case.build(), tmp_path / "model.safetensors"
    save(path, model)
    images = [draw(1)[0], np.zeros((40, 90, 3), np.uint8)]
    before, after = (
        predict(own, images, [[0, 1], [1]], score_threshold=0.0) for own in (model, load(path))
    )
    for own, other in zip(chain(*before), chain(*after), strict=True):
        assert len(own.masks) > 0 and np.array_equal(own.masks, other.masks)
    assert [own.masks.shape[1:] for own in before[0]] == [(64, 64), (40, 90)]
