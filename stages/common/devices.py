"""The device that a network computes on."""

import os

import torch

# What torch asks for before it promises the same bytes from CUDA's matrix products.
CUBLAS_WORKSPACE = ":4096:8"


def compute_device() -> torch.device:
    """Return OVIS_DEVICE, such as "cpu" or "cuda"; if not set, CUDA where there is one."""
    chosen = os.environ.get("OVIS_DEVICE", "auto")
    if chosen == "auto":
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
    if chosen.startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
    return torch.device(chosen)
