"""Resume points of long trainings: a killed run continues and ends with the same bytes.

They are in .resume/<fingerprint>, outside DVC. The fingerprint covers everything that a result
depends on, so a change of params, inputs or code starts a new run.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from stages.common.runtime.storage import read_tensors, write_tensors

ROOT = Path(".resume")
FINISHED = "OVIS_FINISHED"  # file that lists the folders to delete, stages/__main__.py
SECONDS_BETWEEN = 30.0  # between resume points; writing that of the small detector takes 0.1 s


def fingerprint(settings: Any, inputs: Iterable[Path]) -> str:
    """Return a digest of settings (JSON values), inputs, loaded code, and how torch computes.

    The last is its version, the number of threads, the kernels of its processor, and what
    `prepare_device` set: deterministic kernels and the precision of products.
    """
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16)
    exactness = torch.get_deterministic_debug_mode(), torch.backends.cuda.matmul.fp32_precision
    threads, kernels = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    digest.update(f"torch {torch.__version__}, {threads} threads, {kernels}, {exactness}".encode())
    modules = {name: module for name, module in sys.modules.items() if name.startswith("stages")}
    files = (getattr(module, "__file__", None) for module in modules.values())
    code = {Path(file) for file in files if file}
    for path in [*sorted(code), *inputs]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


class Checkpoint:
    """The resume point of one run; with name None it does nothing."""

    def __init__(self, name: str | None, seconds_between: float | None = None) -> None:
        """Keep the state in ROOT/name; save it at most every `seconds_between` seconds."""
        self._file = None if name is None else ROOT / name / "state.safetensors"
        self._seconds = SECONDS_BETWEEN if seconds_between is None else seconds_between
        self._last = time.monotonic()

    def save(
        self, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, facts: Any
    ) -> None:
        """Store the state after `step` steps if enough time has passed; `facts` are JSON values."""
        if self._file is None or time.monotonic() - self._last < self._seconds:
            return
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        write_tensors(self._file, tensors, {"step": step, "facts": facts})
        self._last = time.monotonic()

    def restore(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[int, Any] | None:
        """Load a stored state; return (steps done, facts), or None if nothing is stored."""
        if self._file is None or not self._file.is_file():
            return None
        tensors, header = read_tensors(self._file)
        weights: dict[str, torch.Tensor] = {}
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            kind, rest = name.split(".", 1)
            if kind == "model":
                weights[rest] = value
            else:
                index, moment = rest.split(".", 1)
                moments.setdefault(int(index), {})[moment] = value
        model.load_state_dict(weights)
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
        return header["step"], header["facts"]

    def remove(self) -> None:
        """Delete the state, because the run is finished; if it is guarded, once it is recorded."""
        if self._file is None:
            return
        if FINISHED in os.environ:
            with open(os.environ[FINISHED], "a", encoding="utf-8") as file:
                print(self._file.parent, file=file)
        else:
            shutil.rmtree(self._file.parent, ignore_errors=True)
