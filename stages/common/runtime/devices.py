"""Where a stage computes: a CUDA device, Apple's GPU or the processor, and how exactly.

`DEVICE` is an environment variable and no param: another device changes a result by rounding alone.
How exact a result has to be is the param `deterministic`, for it decides what can be compared.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stages.common.runtime.params import Exactness

VARIABLE = "DEVICE"
CHOICES = ("auto", "cuda", "mps", "cpu")


def compute_device() -> torch.device:
    """Return the device that DEVICE names: auto (unless set), cuda, mps or cpu.

    auto is CUDA where there is a CUDA device, else the processor; never Apple's GPU, whose kernels
    are not deterministic. Of several CUDA devices each process of a training takes its own.

    Raises:
        ValueError: DEVICE has another value, or names a device that is not there; or devices were
            given to this process and cannot be used.
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
            f" {VARIABLE}=auto or cpu, or install a driver and a build of torch that fit it"
        )
    if wanted == "cuda":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(wanted)


def choose_device(exactness: Exactness) -> torch.device:
    """Return the device to compute on: that of `compute_device`, for bytes the processor.

    Raises:
        ValueError: as `compute_device`, or DEVICE asks for a GPU that cannot be so exact.
    """
    wanted = os.environ.get(VARIABLE, "auto")
    if exactness == "bytes" and wanted in ("cuda", "mps"):
        raise ValueError(
            f"{VARIABLE}={wanted}, but params.yaml: deterministic: bytes allows the processor"
            f" only; set {VARIABLE}=cpu, or deterministic to device or band"
        )
    if exactness == "device" and wanted == "mps":
        raise ValueError(
            f"{VARIABLE}=mps, but params.yaml: deterministic: device, and Apple's GPU lacks"
            f" deterministic kernels; set deterministic to band, or {VARIABLE}=cpu"
        )
    device = compute_device()
    return torch.device("cpu") if exactness == "bytes" else device


def prepare_device(exactness: Exactness) -> torch.device:
    """Return the device to compute on, after setting what `deterministic` asks of it.

    - bytes: the processor only.
    - device: deterministic kernels and whole float32 products: equal bytes on the same device.
    - band: whichever kernels are fastest, TF32 products: equal within rounding, which a training
      amplifies up to the noise between seeds.

    On the processor all three compute the same. Call it after `make_deterministic`, and before
    anything is computed.

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
        # Also where `own_kernels` lifts the mode. Trying kernels out would take longer than they
        # save, for images come in many sizes.
        torch.backends.cudnn.deterministic = exact
        precision = "ieee" if exact else "tf32"
        torch.backends.cuda.matmul.fp32_precision = precision
        # Of a module that torch makes at run time
        torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]
        torch.cuda.set_device(device)
    return device


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor on `device`; to CUDA through pinned memory, not waiting for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@contextmanager
def own_kernels() -> Iterator[None]:
    """Within the block let operations use their own GPU kernels in deterministic mode too.

    For forward passes only: torchvision then replaces RoIAlign by a slow composition, because its
    gradient's sums have no fixed order. The forward kernel has no such sums.
    """
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
