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

from flows.environment import WORKER_CLONE
from flows.overlay import apply_overlay
from stages.common.runtime.params import read_params
from stages.preflight import NUMBERS, problems, section_model
from tests.support.clones import clone, clone_environment, run_command
from tests.support.tiny_detector import learned_from

ROOT = Path(__file__).parents[2]
SECTIONS = [key for key, own in read_params(ROOT / "params.yaml").items() if isinstance(own, dict)]
IMAGENET = {
    "init": "imagenet",
    "imagenet": {"weights": "nowhere.pth"},
    "network": {
        "backbone": {
            "kind": "resnet50_fpn",
            "pyramid_width": 64,
            "frozen_stages": 2,
            "extra_levels": "pool",
        },
        "proposals": {"anchor_sizes": [16.0, 32.0, 64.0, 128.0, 256.0]},
    },
}
BARE_VGG16 = {
    "kind": "vgg16",
    "weights": None,
    "sha256": None,
    "frozen_stages": 2,
    "regions_at_once": 100,
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
        ({"vlm": {"model": {"heads": 5}}}, r"vlm: .*model\.heads: 5 must divide .* 128"),
        ({"vlm": {"image_size": 136}}, r"model\.max_patches_side: 16 must be at least 17"),
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
        (
            {"wspn": {"model": {"backbone": BARE_VGG16}, "end_to_end": {"quality_weight": 0.0}}},
            r"ranking\.score: quality is not trained",
        ),
        ({"ranking": {"top_k": 5}}, r"pseudo_boxes\.top_k: 10 is more than ranking\.top_k = 5"),
        ({"detector": IMAGENET}, "detector.imagenet.weights: .*/nowhere.pth is not there"),
        ({"rpn": IMAGENET}, "rpn.imagenet.weights: .*/nowhere.pth is not there"),
        (
            {"finetune": {"training": {"frozen": ["x"]}}},
            r"finetune\.training\.frozen: .*, found \['x'\]",
        ),
        ({"phrases": {"parser": "spacy", "spacy_model": "no_such"}}, "spa[cC]y|no_such"),
    ]
    + [
        (
            {"download": {"source": source, source: {key: "nowhere"}}},
            f"download.{source}.{key}: .*/nowhere is no folder; {fix}",
        )
        for source, key, fix in (
            ("coco", "folder", "`make fetch` fetches it"),
            ("open_images", "folder", "`make fetch` fetches it"),
            ("folder", "path", "write where your images are"),
        )
    ],
)
def test_a_problem_is_told(params, changes, told, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    apply_overlay(params, changes, "test")
    (found,) = problems(SECTIONS, params)
    assert re.search(told, found), found


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"download": {"source": "coco"}},
            "download.coco.narratives: is false, but phrases in"
            " detector.supervision.sources are made of narratives; set it to true, or remove"
            " phrases",
        ),
        (
            {"detector": {"architecture": "mask_rcnn_detectron2"}},
            "detector: Value error, supervision.sources: phrases: this architecture cannot weigh"
            " objects; set class, box and mask of teaches to 1 and weigh_by_score to false",
        ),
        ({"download": {"source": "coco", "coco": {"narratives": True}}}, None),
        ({"download": {"source": "folder"}}, None),
    ],
)
def test_phrases_without_what_they_need_are_refused(params, changes, told):
    sources = learned_from("base_masks", "phrases")
    apply_overlay(params, {"detector": {"supervision": sources}}, "test")
    apply_overlay(params, changes, "test")
    found = [problem.partition("params.yaml: ")[2] for problem in problems(["detector"], params)]
    assert found == ([told] if told else [])


def test_phrases_need_the_narratives_of_a_users_folder(params, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    changes = {
        "detector": {"supervision": learned_from("base_masks", "phrases")},
        "download": {"source": "folder", "folder": {"path": str(folder)}},
    }
    apply_overlay(params, changes, "test")
    (told,) = problems(["detector"], params)
    assert f"{folder} has no narratives.jsonl, but phrases in detector.supervision" in told
    assert problems(["detector"], params, elsewhere=True) == []
    (folder / "narratives.jsonl").touch()
    assert problems(["detector"], params) == []


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


def call(folder: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "flows", *words]
    return subprocess.run(
        command, cwd=folder, env=clone_environment(folder), capture_output=True, text=True
    )


@pytest.mark.parametrize("action", ["plan", "run"])
def test_an_execution_with_problems_ends_before_its_first_stage(with_problems, action):
    folder, done = with_problems, call(with_problems, action)
    assert done.returncode == 2
    assert not done.stdout  # the problems come first, and alone
    assert "pseudo_masks.steps" in done.stderr and "detector.training.steps" in done.stderr
    assert not (folder / "dvc.lock").exists() and not (folder / "data/download").exists()


NOT_HERE = """
from pathlib import Path
from flows import execution
from flows.flow import experiment
execution.require_fleet = lambda root: None
execution.call_flow = lambda *given, check, **more: check()
for pools in (False, True):
    run = lambda: execution.execute(Path.cwd(), None, 1, pools)
    scheduled = lambda: experiment.fn(pools=pools)
    for start in (run, scheduled):
        try:
            start()
        except ValueError as error:
            print(error)
"""


def test_params_are_checked_on_a_schedule_and_for_workers_too(with_problems):
    folder = with_problems
    command = [sys.executable, "-c", NOT_HERE]
    settings = clone_environment(folder) | {WORKER_CLONE: str(folder)}
    told = subprocess.check_output(command, cwd=folder, env=settings, text=True)
    assert told.count("pseudo_masks.steps") == told.count("detector.training.steps") == 4


def test_files_and_variables_of_this_machine_do_not_matter_elsewhere(params, monkeypatch):
    monkeypatch.setenv("OVIS_WORKERS", "many")
    apply_overlay(params, {"detector": IMAGENET, "pseudo_masks": {"steps": "many"}}, "test")
    assert len(problems(SECTIONS, params)) == 3
    (found,) = problems(SECTIONS, params, elsewhere=True)
    assert "pseudo_masks.steps" in found


def test_a_wrong_value_of_a_point_is_told_in_one_line_and_leaves_no_worktree(with_problems):
    folder = with_problems
    for key in ("name", "email"):
        run_command(["git", "config", f"user.{key}", "x@localhost"], folder)
    run_command(["git", "add", "--all"], folder)
    run_command(["git", "commit", "--quiet", "--message", "smoke"], folder)
    points = ["-S", "pseudo_masks.steps=20,abc", "-S", "seed=0,1"]
    done = call(folder, "sweep", *points, "--plan", "pseudo_masks")
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert line.startswith(
        "ovis-dag: pseudo_masks.steps=abc,seed=0: params.yaml: pseudo_masks.steps: "
    )
    assert line.endswith("found 'abc'")
    assert list((folder / ".sweeps/points").iterdir()) == []
    assert run_command(["git", "worktree", "list"], folder).count("\n") == 1
