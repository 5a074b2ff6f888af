"""A stage in several processes that train one model together, each on a device of its own.

The command of a stage stays one process; where there are more CUDA devices it starts the others
itself. Started by torchrun it joins its like instead. How many there are changes a result by
rounding alone, so it is an environment variable.
"""

import importlib
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing import (
    ProcessExitedException,
    ProcessRaisedException,
    get_context,
    spawn,
)

from stages.common.runtime.errors import is_for_users, note_place
from stages.common.runtime.params import environment_number

VARIABLE = "OVIS_PROCESSES"
SECONDS_OF_GRACE = 5.0


def run_in_processes(module: str, device: torch.device, batch_size: int) -> None:
    """Run `main` of a stage's module in this process, or in several at once.

    Args:
        module: the stage's `__main__`, as it is imported.
        device: where it computes; with CUDA each process has a device of its own.
        batch_size: images of a batch. Without OVIS_PROCESSES there are as many processes as
            devices, but none without an image.

    Raises:
        SystemExit: a process failed by a fault of ours; the message ends with its traceback.
        Exception: what a process raised for its user.
        ValueError: OVIS_PROCESSES is no whole number, or above the number of CUDA devices.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:  # of torchrun
        _join(device, "env://")
        importlib.import_module(module).main()
        dist.destroy_process_group()
        return
    devices = torch.cuda.device_count() if device.type == "cuda" else None
    count = environment_number(VARIABLE) or min(devices or 1, batch_size)
    if devices is not None and count > devices:
        raise ValueError(f"{VARIABLE}={count}: there are {devices} CUDA devices; at most that many")
    if count == 1:
        importlib.import_module(module).main()
        return
    errors = get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        work = (module, sys.argv, count, device.type, Path(folder) / "rendezvous", errors)
        try:
            spawn(_work, work, count)
        except (ProcessRaisedException, ProcessExitedException) as error:
            if not errors.empty():
                raise errors.get() from None
            raise SystemExit(f"{module}, one of {count} processes: {error}") from None
    if device.type == "cuda":
        torch.cuda.init()  # so that the stage's receipt tells that it computed on one


def _work(
    rank: int,
    module: str,
    arguments: list[str],
    count: int,
    kind: str,
    rendezvous: Path,
    errors: "SimpleQueue[BaseException]",
) -> None:
    sys.argv = arguments
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    try:
        _join(torch.device(kind), rendezvous.as_uri(), rank, count)
        importlib.import_module(module).main()
    except RuntimeError:
        # A process that merely lost another one lets it end first, so that its error is shown.
        time.sleep(SECONDS_OF_GRACE)
        raise
    except Exception as error:
        if is_for_users(error):
            note_place(error)
            errors.put(error)
        raise
    dist.destroy_process_group()


def _join(device: torch.device, method: str, rank: int = -1, count: int = -1) -> None:
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=method, rank=rank, world_size=count)


def num_processes() -> int:
    """Return how many processes train together; 1 unless `run_in_processes` started more."""
    return dist.get_world_size() if dist.is_initialized() else 1


def process_index() -> int:
    """Return which of them this is, 0-based. The first one writes and reports."""
    return dist.get_rank() if dist.is_initialized() else 0


def own_places(count: int) -> range:
    """Return which of `count` items fall to this process: even, consecutive parts.

    Raises:
        ValueError: there are fewer items than processes.
    """
    index, processes = process_index(), num_processes()
    if count < processes:
        raise ValueError(
            f"a batch of {count} images for {processes} processes: each needs at least one;"
            f" set {VARIABLE} to {count} or less"
        )
    return range(count * index // processes, count * (index + 1) // processes)


def add_over_processes(values: torch.Tensor) -> None:
    """Put the sum over all processes into a tensor that each has one of."""
    if num_processes() > 1:
        dist.all_reduce(values)


def add_by_name(values: Mapping[str, float]) -> dict[str, float]:
    """Return the sums over all processes of numbers that not every process needs to have."""
    if num_processes() == 1:
        return dict(values)
    every: list[Mapping[str, float]] = [{}] * num_processes()
    dist.all_gather_object(every, values)
    names = dict.fromkeys(name for own in every for name in own)
    return {name: sum(own.get(name, 0.0) for own in every) for name in names}


def add_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Put the sum over all processes into the gradients, by one message.

    A parameter that no process has a gradient of gets none, so that an optimizer leaves it alone.
    """
    if num_processes() == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
    reached = torch.tensor([p.grad is not None for p in trained], dtype=torch.int64, device="cpu")
    add_over_processes(reached)
    trained = [p for p, count in zip(trained, reached.tolist(), strict=True) if count]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for parameter, total in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
        parameter.grad = total.view_as(parameter).clone()
