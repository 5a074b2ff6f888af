"""`python -m stages <name>` tells its user what to mend, and us where our own code broke."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from stages import __main__ as stages
from stages import guard
from stages.common.formats.images import EncodedImage, write_images
from stages.common.runtime.checkpoints import Checkpoint
from stages.common.runtime.params import read_params


@pytest.mark.parametrize(
    ("params", "told"),
    [
        (None, "params.yaml"),
        ("seed: 0\nshards: [0\n", "params.yaml"),
        ("seed: nought\nshards: [0]\n", "seed"),
        ("seed: 0\nshards: [0]\n", "phrases"),
    ],
)
def test_what_a_user_can_mend_is_one_line(repository, tmp_path, params, told):
    if params is not None:
        (tmp_path / "params.yaml").write_text(params)
    command = [sys.executable, "-m", "stages", "phrases", "0"]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    environment.pop("DVC_STAGE", None)
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("stages.phrases: ") and told in line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("stages", r"python -m stages: expected a stage \(activation, .*wspn\), found none"),
        ("stages nonsense", "python -m stages: expected a stage .*, found nonsense"),
        ("stages common", "python -m stages: expected a stage .*, found common"),
        ("comparators", r"python -m comparators: expected a stage \(rpn, .*\), found none"),
        ("comparators nonsense", "python -m comparators: expected a stage .*, found nonsense"),
        ("comparators longer", "python -m comparators: expected a stage .*, found longer"),
        ("stages.preflight nonsense", "'nonsense' is no section of params.yaml"),
        ("stages.preflight --folder nowhere", "--folder .*/nowhere: no such folder"),
        ("stages.preflight ../vlm", "'../vlm' is no section of params.yaml"),
    ]
    + [
        (f"stages {stage}{shard}", f"stages.{stage}: expected the number of a shard of .*{shard}$")
        for stage in ("activation", "phrases", "pseudo_boxes", "pseudo_masks")
        for shard in ("", " one", " 0 1")
    ],
)
def test_wrong_words_are_one_line(repository, words, told):
    ended = subprocess.run(
        [sys.executable, "-m", *words.split()],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert re.match(told, line), line


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_image_that_a_worker_cannot_decode_is_one_line(repository, tmp_path, workers):
    shutil.copy(repository / "params.yaml", tmp_path)
    broken = EncodedImage(7, "7.png", 8, 8, b"no image")
    write_images(tmp_path / "data/download/images/train/0.parquet", [broken])
    ended = subprocess.run(
        [sys.executable, "-m", "stages", "proposals", "0"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(repository), "OVIS_WORKERS": workers},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    told = "stages.proposals: 7.png: cannot be decoded as an image (8 bytes)"
    assert ended.stderr.splitlines() == [told]


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        (lambda *_, **__: np.zeros(2).reshape(3), ValueError),
        (lambda *_, **__: [].pop(), IndexError),
        (lambda *_, **__: read_params(), SystemExit),
    ],
)
def test_only_errors_that_our_code_raises_on_purpose_are_for_users(
    monkeypatch, tmp_path, broken, error
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setattr(sys, "argv", ["stages", "phrases"])
    monkeypatch.setattr("runpy.run_module", broken)
    with pytest.raises(error):
        stages.main()


@pytest.fixture
def by_dvc(monkeypatch, tmp_path):
    """Return a function that runs a stage as DVC does, with this lock of its packages."""
    here = importlib.metadata.version("ruamel.yaml")
    for name, text in {
        "params.yaml": "seed: 0\n",
        "pyproject.toml": '[project]\ndependencies = ["ruamel.yaml>=0.1"]\n',
        "dvc.yaml": f"stages: {{phrases: {{deps: [{guard.LOCK}], params: [seed], outs: [x]}}}}\n",
    }.items():
        (tmp_path / name).write_text(text)
    ran: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "phrases")
    monkeypatch.setenv("OVIS_RECEIPT", str(tmp_path / "receipt.json"))
    monkeypatch.setattr("runpy.run_module", lambda name, **_: ran.append(name))

    def run(version: str = here) -> list[str]:
        (tmp_path / guard.LOCK).write_text(f"ruamel-yaml=={version}\n")
        monkeypatch.setattr(sys, "argv", ["stages", "phrases"])
        stages.main()
        return ran

    return run


def test_a_stage_does_not_run_with_other_packages_than_those_of_its_key(by_dvc, tmp_path):
    told = r"phrases: ruamel-yaml .* is installed, 0\.1 is locked; install requirements-stages.lock"
    with pytest.raises(SystemExit, match=told):
        by_dvc("0.1")
    assert not (tmp_path / "receipt.json").exists()
    assert by_dvc() == ["stages.phrases"]  # and for the first time


@pytest.mark.parametrize("touched", [False, True])
def test_a_training_that_is_not_recorded_keeps_its_resume_point(
    by_dvc, tmp_path, monkeypatch, touched
):
    state = tmp_path / ".resume/name/state.safetensors"
    state.parent.mkdir(parents=True)
    state.touch()

    def train(name, **_):
        Checkpoint("name").remove()
        if touched:
            (tmp_path / guard.LOCK).touch()

    monkeypatch.setattr("runpy.run_module", train)
    with pytest.raises(SystemExit, match="is not recorded") if touched else nullcontext():
        by_dvc()
    assert state.exists() is touched
    monkeypatch.delenv("OVIS_FINISHED")
    Checkpoint("name").remove()  # as a plain run does
    assert not state.exists()


@pytest.mark.parametrize(("mps_bytes", "device"), [(None, "cpu"), (0, "cpu"), (1, "mps")])
def test_a_receipt_says_with_what_the_result_was_made(
    by_dvc, tmp_path, monkeypatch, mps_bytes, device
):
    """Apple's GPU counts if the stage has used its memory."""
    if mps_bytes is not None:
        monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
        monkeypatch.setattr("torch.mps.driver_allocated_memory", lambda: mps_bytes)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        by_dvc()
    finally:
        torch.set_num_threads(threads)
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    made = receipt["made"]
    assert made["torch"] == torch.__version__
    assert made["device"] == ("cuda" if torch.cuda.is_initialized() else device)
    assert made["threads"] == 3
    assert made["model"] and made["python"] and made["seconds"] >= 0
    assert made["kernels"] == torch.backends.cpu.get_cpu_capability()
    assert receipt["inputs"]["params"] == {"seed": 0}
    assert set(receipt["inputs"]["files"]) == {"params.yaml", guard.LOCK}
