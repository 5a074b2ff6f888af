"""Which device, and how exactly; tests/pipeline/test_gpu.py runs the stages on one."""

import os
import subprocess
import sys

import pytest
import torch

from stages.common.runtime.devices import (
    autocast,
    choose_device,
    compute_device,
    own_kernels,
    prepare_device,
)
from stages.common.runtime.params import read_exactness


@pytest.fixture
def cuda(monkeypatch):
    """Let torch claim a CUDA device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("DEVICE", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def test_auto_takes_cuda_or_else_the_processor(cuda, monkeypatch):
    assert compute_device() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "3")  # of one process among several
    assert compute_device() == torch.device("cuda", 3)
    monkeypatch.setenv("DEVICE", "cpu")
    assert compute_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setenv("DEVICE", "auto")
    assert compute_device() == torch.device("cpu")
    monkeypatch.setenv("DEVICE", "mps")
    assert compute_device() == torch.device("mps")


@pytest.mark.parametrize("wanted", ["cuda", "mps"])
def test_an_absent_device_is_named(monkeypatch, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setenv("DEVICE", wanted)
    with pytest.raises(ValueError, match=rf"DEVICE={wanted}: torch .* no such .* DEVICE=auto"):
        compute_device()


def test_an_unknown_device_is_refused(monkeypatch):
    monkeypatch.setenv("DEVICE", "gpu")
    with pytest.raises(ValueError, match="DEVICE='gpu': expected one of auto, cuda, mps, cpu"):
        compute_device()


def test_equal_bytes_are_made_on_the_processor(cuda, monkeypatch):
    assert choose_device("bytes") == torch.device("cpu")
    assert choose_device("device").type == choose_device("band").type == "cuda"
    monkeypatch.setenv("DEVICE", "cuda")
    with pytest.raises(ValueError, match=r"DEVICE=cuda, but .*deterministic: bytes .*CPU"):
        choose_device("bytes")


def test_apples_gpu_is_not_deterministic(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setenv("DEVICE", "mps")
    assert choose_device("band") == torch.device("mps")
    with pytest.raises(ValueError, match=r"DEVICE=mps, but .*deterministic: device.* to band"):
        choose_device("device")


def test_a_device_that_was_given_and_cannot_be_used_is_no_reason_to_take_the_processor(
    cuda, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1")
    assert compute_device() == torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"CUDA_VISIBLE_DEVICES=GPU-1, but torch .* driver"):
        compute_device()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert compute_device() == torch.device("cpu")


@pytest.mark.parametrize(("exactness", "precision"), [("device", "ieee"), ("band", "tf32")])
def test_exactness_sets_the_switches_of_cuda(cuda, monkeypatch, exactness, precision):
    taken = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    backends = torch.backends
    assert prepare_device(exactness) == taken[0] == torch.device("cuda", 0)
    assert torch.are_deterministic_algorithms_enabled() == (exactness == "device")
    assert backends.cudnn.deterministic == (exactness == "device")
    assert backends.cuda.matmul.fp32_precision == precision
    assert backends.cudnn.conv.fp32_precision == precision
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_own_kernels_are_for_the_block_only():
    torch.use_deterministic_algorithms(True)
    with own_kernels():
        assert not torch.are_deterministic_algorithms_enabled()
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(("found", "enabled"), [("AVX2", False), ("AVX512", True)])
def test_bfloat16_is_for_processors_that_are_fast_at_it(monkeypatch, found, enabled):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: found)
    with autocast(torch.device("cpu"), True):
        made = torch.ones(2, 2) @ torch.ones(2, 2)
        assert made.dtype == (torch.bfloat16 if enabled else torch.float32)
    with autocast(torch.device("cpu"), False):
        assert not torch.is_autocast_enabled("cpu")


def test_a_slow_processor_is_told_once():
    program = """
import torch
from stages.common.runtime.devices import autocast
for _ in range(2):
    with autocast(torch.device("cpu"), True):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
"""
    lowest = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}  # torch uses no vector instructions
    done = subprocess.run(
        [sys.executable, "-c", program], env=lowest, capture_output=True, text=True, check=True
    )
    assert done.stderr == "bfloat16: this cpu is slow at it, so float32 is used\n"


def test_an_older_gpu_does_not_emulate_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: False)
    with autocast(torch.device("cuda"), True):
        assert not torch.is_autocast_enabled("cuda")


def test_an_unknown_exactness_names_the_key(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("deterministic: true\n")
    with pytest.raises(ValueError, match=r"deterministic: expected one of bytes, device, band"):
        read_exactness(path)
