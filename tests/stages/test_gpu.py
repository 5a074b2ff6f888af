"""On a CUDA device every stage gives what it gives on the processor, within a band.

The experiment of the smoke profile is made on the processor. Then each stage runs once more from
the same inputs on the GPU, so that no difference adds up from stage to stage.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from ruamel.yaml import YAML

from stages.common.storage import read_tensors
from tests.pipeline.test_whole_dag import clone, environment, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
# Stage → largest mean difference of its dense results, or of its metrics in units of their size.
# Trainings amplify rounding: of a loss after ten steps a tenth is left to chance.
BANDS = {
    "vlm": 0.3,
    "vocabulary": 1e-4,
    "wspn": 0.1,
    "ranking@0": 0.05,
    "activation@0": 0.01,
    "masks@0": 0.05,
    "detector": 0.1,
    "finetune": 0.1,
    "evaluation": 0.1,
}
LOSS = "loss_"


@pytest.fixture(scope="module")
def experiment(repository, tmp_path_factory) -> Path:
    """Give a clone with the smoke profile's results, made on the processor."""
    folder = clone(repository, tmp_path_factory.mktemp("gpu"), "smoke")
    os.environ["DEVICE"] = "cpu"
    try:
        run([sys.executable, "-m", "dvc", "repro", "evaluation"], folder)
    finally:
        del os.environ["DEVICE"]
    return folder


def run_on_gpu(experiment: Path, folder: Path, stage: str, exactness: str = "device") -> Path:
    """Run one stage on CUDA in a copy of the experiment and return the copy."""
    shutil.copytree(experiment, folder, ignore=shutil.ignore_patterns(".git", ".dvc", ".resume"))
    params, yaml = folder / "params.yaml", YAML()
    content = yaml.load(params)
    content["deterministic"] = exactness
    yaml.dump(content, params)
    name, _, shard = stage.partition("@")
    command = YAML(typ="safe").load(folder / "dvc.yaml")["stages"][name]["cmd"].split()[1:]
    command = [shard if word.startswith("${") else word for word in command]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment(folder) | {"DEVICE": "cuda", "OVIS_PROCESSES": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
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
    if name == "masks":
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


@pytest.mark.parametrize("stage", BANDS)
def test_a_stage_on_cuda_is_within_its_band(experiment, tmp_path, stage):
    made = numbers(run_on_gpu(experiment, tmp_path / "gpu", stage), stage)
    expected = numbers(experiment, stage)
    assert made.shape == expected.shape
    size = max(1.0, float(np.abs(expected).mean()))
    assert float(np.abs(made - expected).mean()) <= BANDS[stage] * size


@pytest.mark.parametrize("stage", ["vlm", "wspn", "activation@0", "masks@0", "detector"])
def test_the_same_device_gives_the_same_bytes(experiment, tmp_path, stage):
    first, second = (run_on_gpu(experiment, tmp_path / name, stage) for name in ("a", "b"))
    for path in sorted((first / "data" / stage.partition("@")[0]).glob("*.*")):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes(), path.name


def test_the_fastest_kernels_stay_within_the_band(experiment, tmp_path):
    made = numbers(run_on_gpu(experiment, tmp_path / "gpu", "detector", "band"), "detector")
    assert np.abs(made - numbers(experiment, "detector")).mean() <= BANDS["detector"] * made.mean()
