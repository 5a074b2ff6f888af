"""What is wrong with params is told before anything runs."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.overlay import apply_overlay
from stages.preflight import problems
from tests.pipeline.clones import clone, environment

SECTIONS = ["vlm", "vocabulary", "wspn", "detector", "rpn", "pseudo_masks"]
IMAGENET = {
    "init": "imagenet",
    "imagenet": {"weights": "nowhere.pth"},
    "network": {
        "backbone": {"kind": "resnet50_fpn", "pyramid_width": 64, "frozen_stages": 2},
        "proposals": {"anchor_sizes": [16.0, 32.0, 64.0, 128.0, 256.0]},
    },
}


@pytest.fixture
def params(repository, tmp_path):
    """Give a copy of params.yaml."""
    return Path(shutil.copy(repository / "params.yaml", tmp_path / "params.yaml"))


def test_the_default_has_no_problem(params):
    assert problems(SECTIONS, params) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": "one"}, "seed: expected a whole number"),
        ({"pseudo_masks": {"steps": "many"}}, "pseudo_masks.steps: .*'many'"),
        ({"vlm": {"source": "albef"}}, "vlm.pretrained.checkpoint: is null"),
        (
            {"vlm": {"source": "albef", "pretrained": {"checkpoint": "nowhere.pth"}}},
            "vlm.pretrained.checkpoint: .*/nowhere.pth is not there",
        ),
        (
            {"vlm": {"source": "blip", "pretrained": {"checkpoint": "nobody/nothing"}}},
            "vlm.pretrained.checkpoint: 'nobody/nothing' .* `hf download nobody/nothing`",
        ),
        (
            {"vocabulary": {"encoder": "clip", "clip": {"folder": "nobody/nothing"}}},
            "vocabulary.clip.folder: 'nobody/nothing'",
        ),
        (
            {"wspn": {"model": {"backbone": {"kind": "vgg16", "weights": "nowhere.pth"}}}},
            "wspn.model.backbone",
        ),
        ({"detector": IMAGENET}, "detector.imagenet.weights: .*/nowhere.pth is not there"),
        ({"rpn": IMAGENET}, "rpn.imagenet.weights: .*/nowhere.pth is not there"),
    ],
)
def test_a_problem_is_told(params, changes, told, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    apply_overlay(params, changes, "test")
    (found,) = problems(SECTIONS, params)
    assert re.search(told, found), found


@pytest.mark.parametrize(
    ("variable", "told"),
    [("OVIS_WORKERS", "OVIS_WORKERS='abc': expected a"), ("DEVICE", "DEVICE='abc': expected one")],
)
def test_a_wrong_variable_is_told(params, variable, told, monkeypatch):
    monkeypatch.setenv(variable, "abc")
    (found,) = problems(["pseudo_masks"], params)
    assert found.startswith(told)


@pytest.fixture(scope="module")
def with_problems(repository, tmp_path_factory):
    """Give a clone whose params have two problems; nothing runs in it."""
    folder = clone(repository, tmp_path_factory.mktemp("clone"), "smoke")
    changes = {"pseudo_masks": {"steps": "many"}, "detector": {"training": {"steps": -1}}}
    apply_overlay(folder / "params.yaml", changes, "test")
    return folder


@pytest.mark.parametrize("action", ["plan", "run"])
def test_an_execution_with_problems_ends_before_its_first_stage(with_problems, action):
    folder, command = with_problems, [sys.executable, "-m", "flows", action]
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert not done.stdout  # the problems come first, and alone
    assert "pseudo_masks.steps" in done.stderr and "detector.training.steps" in done.stderr
    assert not (folder / "dvc.lock").exists() and not (folder / "data/download").exists()
