"""`python -m stages pseudo_boxes 0`: run a stage as dvc.yaml does, and record no false result.

It runs `python -m stages.pseudo_boxes 0` and then fails if anything that the stage depends on
changed meanwhile, because DVC records nothing for a failed stage. If OVIS_RECEIPT names a file, the
inputs, device and versions that made the result are written there as JSON.
"""

import errno
import json
import os
import platform
import runpy
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import NamedTemporaryFile

from stages.common.runtime.errors import is_for_users, refuse
from stages.guard import LOCK, changes, find_declared, other_packages

ROOT = Path(__file__).parents[1]
STAGE = "DVC_STAGE"  # DVC sets it for the commands that it runs
# How many times a waiting torch thread spins before it gives up its core (GNU OpenMP). The default,
# 300,000, outlasts most waits: two trainings on two cores then take twice as long as one after the
# other.
SPINS = ("GOMP_SPINCOUNT", "10000")
RECEIPT = "OVIS_RECEIPT"
FINISHED = "OVIS_FINISHED"  # stages/common/runtime/checkpoints.py, which imports torch
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def main(package: str = "stages") -> None:
    """Run the stage that the command line names; guard its inputs if DVC runs it.

    Args:
        package: the package that holds the stage.

    Raises:
        SystemExit: the stage failed, its inputs changed while it ran, or the installed packages
            differ from the lock. An error that the user can fix is one line, with exit code 2.
    """
    stages = sorted(file.parent.name for file in (ROOT / package).glob("*/__main__.py"))
    if sys.argv[1:2] not in ([stage] for stage in stages):
        given = f"found {sys.argv[1]}" if sys.argv[1:] else "found none"
        refuse(f"python -m {package}: expected a stage ({', '.join(stages)}), {given}")
    name = f"{package}.{sys.argv.pop(1)}"
    os.environ.setdefault(*SPINS)  # read when torch is imported
    try:
        _run_guarded(name, os.environ.get(STAGE))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise SystemExit(f"{name}: {error}; make room and run the same again") from None
        if not is_for_users(error):
            raise
        refuse(f"{name}: {error}")


def _run_guarded(name: str, stage: str | None) -> None:
    """Run a stage's module; if DVC runs it as `stage`, compare its inputs before and after."""
    if stage is None:
        _run(name)
        return
    declared, started = find_declared(stage), time.monotonic()
    before = declared.read()
    if LOCK in declared.paths and (found := other_packages(Path())):
        raise SystemExit(
            f"{stage}: {'; '.join(found)}; install {LOCK}, or update it to what is installed"
        )
    with NamedTemporaryFile("r", encoding="utf-8") as finished:
        os.environ[FINISHED] = finished.name
        _run(name)
        resume_points = finished.read().splitlines()
    try:
        changed = changes(before, declared.read())
    except (FileNotFoundError, ValueError) as error:  # params.yaml is gone or half edited
        changed = [str(error)]
    if changed:
        raise SystemExit(
            f"{stage} is not recorded, because this changed while it ran: {'; '.join(changed)};"
            " run the same again"
        )
    for folder in resume_points:  # until here, the same again would have gone on from them
        shutil.rmtree(folder, ignore_errors=True)
    if RECEIPT in os.environ:
        made = {**_made_with(), "seconds": round(time.monotonic() - started, 2)}
        receipt = json.dumps({"inputs": asdict(before), "made": made}, default=str)
        Path(os.environ[RECEIPT]).write_text(receipt, encoding="utf-8")


def _run(name: str) -> None:
    """Run the `__main__` of a stage's package, such as stages.pseudo_boxes."""
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        if error.code:
            raise


def _made_with() -> dict[str, str | int]:
    """Return the version of Python, the device with its model and, if imported, torch's facts."""
    made: dict[str, str | int] = {"python": platform.python_version()}
    made |= {"device": "cpu", "model": _processor()}
    if torch := sys.modules.get("torch"):
        made["torch"] = torch.__version__
        made["kernels"] = torch.backends.cpu.get_cpu_capability()  # the processor's, such as AVX2
        made["threads"] = torch.get_num_threads()  # another number gives other bytes
        if torch.cuda.is_initialized():
            made |= {"device": "cuda", "model": torch.cuda.get_device_name()}
        elif torch.backends.mps.is_available() and torch.mps.driver_allocated_memory():
            made["device"] = "mps"  # whose model is that of the processor
    return made


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


if __name__ == "__main__":
    main()
