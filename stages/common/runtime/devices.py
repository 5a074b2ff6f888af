"""Where a stage computes (a CUDA device, Apple's GPU or the CPU), and how exactly.

`DEVICE` is an environment variable and not a param, because another device changes a result by
rounding only. How exact a result must be is the param `deterministic`, because it decides which
results can be compared.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from stages.common.runtime.params import Exactness

VARIABLE = "DEVICE"
CHOICES = ("auto", "cuda", "mps", "cpu")


def compute_device() -> torch.device:
    """Return the device that DEVICE names: auto (the default), cuda, mps or cpu.

    auto is a CUDA device if there is one, otherwise the CPU. It is never Apple's GPU, whose kernels
    are not deterministic. Each process of a training takes the CUDA device of its LOCAL_RANK.

    Raises:
        ValueError: DEVICE has another value or names a device that torch does not see, or
            CUDA_VISIBLE_DEVICES lists devices and torch sees none.
    """
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted not in CHOICES:
        raise ValueError(f"{VARIABLE}={wanted!r}: expected one of {', '.join(CHOICES)} or nothing")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    given = os.environ.get("CUDA_VISIBLE_DEVICES") or "-1"
    if wanted == "auto" and given != "-1" and not there["cuda"]:
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES={given}, but torch {torch.__version__} sees no CUDA device: the"
            f" driver may be older than CUDA {torch.version.cuda}; update it, or set {VARIABLE}=cpu"
        )
    if wanted == "auto":
        wanted = "cuda" if there["cuda"] else "cpu"
    elif not there.get(wanted, True):
        raise ValueError(
            f"{VARIABLE}={wanted}: torch {torch.__version__} sees no such device on this machine"
            f" (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')!r}); set"
            f" {VARIABLE}=auto or cpu, or install a driver and a matching build of torch"
        )
    if wanted == "cuda":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(wanted)


def choose_device(exactness: Exactness) -> torch.device:
    """Return the device to compute on: the CPU for `bytes`, otherwise that of `compute_device`.

    Raises:
        ValueError: as `compute_device`, or DEVICE names a GPU that cannot be so exact.
    """
    wanted = os.environ.get(VARIABLE, "auto")
    if exactness == "bytes" and wanted in ("cuda", "mps"):
        raise ValueError(
            f"{VARIABLE}={wanted}, but params.yaml: deterministic: bytes allows the CPU only; set"
            f" {VARIABLE}=cpu, or deterministic to device or band"
        )
    if exactness == "device" and wanted == "mps":
        raise ValueError(
            f"{VARIABLE}=mps, but params.yaml: deterministic: device, and Apple's GPU lacks"
            f" deterministic kernels; set deterministic to band, or {VARIABLE}=cpu"
        )
    device = compute_device()
    return torch.device("cpu") if exactness == "bytes" else device


def prepare_device(exactness: Exactness) -> torch.device:
    """Return the device to compute on, set up as the param `deterministic` asks.

    - bytes: the CPU only.
    - device: deterministic kernels and full float32 products; equal bytes on equal devices.
    - band: the fastest kernels and TF32 products; equal up to rounding, which a training amplifies
      to the noise between seeds.

    On the CPU all three compute the same. Call this after `make_deterministic` and before any
    computation.

    Raises:
        ValueError: as `choose_device`.
    """
    device = choose_device(exactness)
    if device.type == "cpu":
        return device
    exact = exactness == "device"
    torch.use_deterministic_algorithms(exact)
    if device.type == "cuda":
        # Read when cuBLAS is first used; without it deterministic mode refuses matrix products.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # This also holds where `own_kernels` lifts deterministic mode. cuDNN's benchmark stays off:
        # images come in many sizes, so trying out kernels would take longer than it saves.
        torch.backends.cudnn.deterministic = exact
        precision = "ieee" if exact else "tf32"
        torch.backends.cuda.matmul.fp32_precision = precision
        # torch makes this module at run time, so mypy does not know it.
        torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]
        torch.cuda.set_device(device)
    return device


def autocast(device: torch.device, bfloat16: bool) -> torch.autocast:
    """Return a context of bfloat16 autocast if asked, and if the device is fast at it.

    Otherwise the block computes in float32, and standard error says so once. On processors without
    AVX-512 torch's bfloat16 is an order of magnitude slower than float32, and less exact.
    """
    fast = is_fast_at_bfloat16(device.type)
    if bfloat16 and not fast:
        _tell_once(f"bfloat16: this {device.type} is slow at it, so float32 is used")
    return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16 and fast)


def is_fast_at_bfloat16(kind: str) -> bool:
    """Return whether torch has fast kernels for it on this machine's "cpu", "cuda" or another."""
    if kind == "cpu":
        return torch.backends.cpu.get_cpu_capability() == "AVX512"
    return kind != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


@cache
def _tell_once(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor on `device`; copies to CUDA are asynchronous, through pinned memory."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@contextmanager
def own_kernels() -> Iterator[None]:
    """Lift deterministic mode within the block, so that operations use their own GPU kernels.

    For forward passes only. In deterministic mode torchvision replaces RoIAlign by a slow
    composition, because the sums in its gradient have no fixed order. The forward kernel has no
    such sums.
    """
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
