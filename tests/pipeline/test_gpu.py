"""What the stages compute on a GPU, compared with the processor's results of the smoke profile.

Each stage runs from those results, so that no difference adds up from stage to stage. Without a
CUDA device the stages run on a pretended one, which tells what a real one would refuse.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from ruamel.yaml import YAML

from flows.overlay import apply_overlay, read_profile
from stages.common.runtime.storage import read_tensors
from tests.support.clones import run_command
from tests.support.pretended_gpu import run_on_it

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("smoke")]
# Stage → largest mean difference of its dense results, or of its metrics in units of their size.
# Trainings amplify rounding: of a loss after ten steps a tenth is left to chance.
BANDS = {
    "vlm": 0.3,
    "vocabulary": 1e-4,
    "wspn": 0.1,
    "ranking@0": 0.05,
    "activation@0": 0.01,
    "pseudo_masks@0": 0.05,
    "detector": 0.1,
    "finetune": 0.1,
    "evaluation": 0.1,
}
LOSS = "loss_"
SHORT_VLM = {"vlm": {"align": {"steps": 20}, "fuse": {"steps": 5}}}


@pytest.fixture
def gpu(monkeypatch):
    """Have stages compute on a CUDA device; its tests have the marker `gpu`."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    monkeypatch.setenv("DEVICE", "cuda")
    monkeypatch.setenv("OVIS_PROCESSES", "1")


def run_stage(
    smoke: Path,
    folder: Path,
    stage: str,
    pretended: bool = False,
    changes: dict[str, Any] | None = None,
) -> Path:
    """Run one stage in a copy of the experiment without that stage's results; return the copy.

    Args:
        smoke: the clone with the experiment's results.
        folder: where the copy goes.
        stage: its name, with the shard.
        pretended: whether it runs on the pretended device.
        changes: an overlay on params.yaml.
    """
    name, _, shard = stage.partition("@")
    shutil.copytree(smoke, folder, ignore=shutil.ignore_patterns(".git", ".dvc", ".resume"))
    shutil.rmtree(folder / "data" / name)
    apply_overlay(folder / "params.yaml", changes or {}, "test")
    command = YAML(typ="safe").load(folder / "dvc.yaml")["stages"][name]["cmd"].split()[2:]
    command = [shard if word.startswith("${") else word for word in command]
    if pretended:
        run_on_it(folder, command)
    else:
        run_command([sys.executable, "-m", *command], folder)
    return folder


def numbers(folder: Path, stage: str) -> np.ndarray:
    """Return the stage's results as one row of numbers, fit for a mean difference."""
    name, _, shard = stage.partition("@")
    data = folder / "data" / name
    if name == "vocabulary":
        return read_tensors(data / "embeddings.safetensors")[0]["embeddings"].flatten().numpy()
    if name == "activation":
        return read_tensors(data / f"{shard}.safetensors")[0]["maps"].float().flatten().numpy()
    if name == "ranking":
        return pq.read_table(data / f"{shard}.parquet")["score"].to_numpy()
    if name == "pseudo_masks":
        areas = [entry["area"] for entry in json.loads((data / f"{shard}.json").read_text())]
        return np.array(areas) / np.mean(areas)
    metrics = json.loads((data / "metrics.json").read_text())
    if name == "evaluation":  # percent
        return np.array(_leaves(metrics["detector"]["generalized"])) / 100
    values = np.array([value for key, value in metrics.items() if key.startswith(LOSS)])
    assert len(values)
    return values


def _leaves(value: object) -> list[float]:
    if isinstance(value, dict):
        return [leaf for key in sorted(value) for leaf in _leaves(value[key])]
    return [float(value)] if isinstance(value, int | float) else []


def assert_within_band(made: Path, expected: Path, stage: str) -> None:
    found, wanted = numbers(made, stage), numbers(expected, stage)
    assert found.shape == wanted.shape
    size = max(1.0, float(np.abs(wanted).mean()))
    assert float(np.abs(found - wanted).mean()) <= BANDS[stage] * size


REFUSED = """
import numpy, torch, torchvision
from tests.support.pretended_gpu import pretend
pretend()
there = {"device": "pretended"}
ones, box = torch.ones(3, **there), torch.tensor([[0.0, 0, 0, 2, 2]], **there)
torch.use_deterministic_algorithms(True)
assert (ones + 1).sum().item() == 6 and ones.cpu().numpy().shape == (3,)
for forbidden in (
    lambda: ones + torch.ones(3),
    lambda: torch.stack([ones, torch.ones(3)]),
    lambda: ones.numpy(),
    lambda: numpy.asarray(ones),
    lambda: torch.rand(3, generator=torch.Generator(), **there),
    lambda: torchvision.ops.roi_align(
        torch.ones(1, 1, 4, 4, **there).requires_grad_(), box, 2
    ).sum().backward(),
):
    try:
        forbidden()
    except (RuntimeError, TypeError) as error:
        print(error)
"""


def test_the_pretended_gpu_has_the_rules_of_a_real_one(repository):
    told = run_command([sys.executable, "-c", REFUSED], repository).splitlines()
    expected = ["same device", "same device", "to numpy", "to numpy", "generator", "deterministic"]
    assert len(told) == len(expected)
    assert all(words in line for words, line in zip(expected, told, strict=True)), told


@pytest.mark.parametrize("stage", BANDS)
def test_a_pretended_gpu_refuses_nothing(smoke, tmp_path, monkeypatch, stage):
    expected, changes = smoke, None
    if stage == "vlm":  # the slowest there
        changes = SHORT_VLM
        with monkeypatch.context() as patch:
            patch.setenv("DEVICE", "cpu")
            expected = run_stage(smoke, tmp_path / "expected", stage, changes=changes)
    made = run_stage(smoke, tmp_path / "made", stage, pretended=True, changes=changes)
    assert_within_band(made, expected, stage)


@pytest.mark.parametrize("stage", ["detector", "wspn"])
def test_it_refuses_nothing_of_the_networks_at_full_size(smoke, tmp_path, stage):
    changes = {stage: read_profile(smoke, "coco-mini-full")[stage]}
    training = {"detector": "training", "wspn": "end_to_end"}[stage]
    changes[stage][training] |= {"steps": 1, "batch_size": 1}
    made = run_stage(smoke, tmp_path / "made", stage, pretended=True, changes=changes)
    assert np.isfinite(numbers(made, stage)).all()


def test_it_ranks_by_class_scores_as_the_processor_does(smoke, tmp_path, monkeypatch):
    monkeypatch.setenv("DEVICE", "cpu")
    changes = {"ranking": {"score": "classes", "nms_iou": [0.3]}}
    expected = run_stage(smoke, tmp_path / "expected", "ranking@0", changes=changes)
    monkeypatch.delenv("DEVICE")
    made = run_stage(smoke, tmp_path / "made", "ranking@0", pretended=True, changes=changes)
    assert_within_band(made, expected, "ranking@0")
    assert not np.array_equal(numbers(expected, "ranking@0"), numbers(smoke, "ranking@0"))


@pytest.mark.gpu
@pytest.mark.parametrize("stage", BANDS)
def test_a_stage_on_cuda_is_within_its_band(gpu, smoke, tmp_path, stage):
    assert_within_band(run_stage(smoke, tmp_path / "made", stage), smoke, stage)


@pytest.mark.gpu
@pytest.mark.parametrize("stage", ["vlm", "wspn", "activation@0", "pseudo_masks@0", "detector"])
def test_the_same_device_gives_the_same_bytes(gpu, smoke, tmp_path, stage):
    first, second = (run_stage(smoke, tmp_path / name, stage) for name in ("a", "b"))
    for path in sorted((first / "data" / stage.partition("@")[0]).glob("*.*")):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes(), path.name


@pytest.mark.gpu
def test_the_fastest_kernels_stay_within_the_band(gpu, smoke, tmp_path):
    made = run_stage(smoke, tmp_path / "made", "detector", changes={"deterministic": "band"})
    assert_within_band(made, smoke, "detector")
