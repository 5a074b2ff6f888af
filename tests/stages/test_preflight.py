"""What is wrong with params is told before anything runs."""

import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from flows.overlay import apply_overlay
from stages.common.runtime.params import read_params
from stages.preflight import NUMBERS, problems, section_model
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


def leaves(value: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted key, the mapping or list that has it, its last part) of all values."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for last, held in list(inner):
        if isinstance(held, dict | list):
            yield from leaves(held, f"{key}.{last}")
        else:
            yield f"{key}.{last}", value, last


def test_no_value_is_nan_and_two_may_be_infinite(repository):
    params, passed = read_params(repository / "params.yaml"), set()
    for name in (key for key, content in params.items() if isinstance(content, dict)):
        for key, holder, last in leaves(params[name], name):
            before = holder[last]
            for odd in (math.nan, math.inf, -math.inf):
                holder[last] = odd
                with suppress(ValueError):
                    section_model(name).fitting(params[name]).model_validate(params[name])
                    passed.add((key.split(".")[-1], odd))
            holder[last] = before
    assert passed == {("max_aspect", math.inf), ("gradient_clip", math.inf)}


@pytest.mark.parametrize(
    ("variable", "told"),
    [("DEVICE", "DEVICE='abc': expected one")]
    + [(name, f"{name}='abc': expected a whole number") for name in NUMBERS],
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
