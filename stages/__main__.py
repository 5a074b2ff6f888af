"""`python -m stages pseudo_boxes 0`: run a stage as dvc.yaml does, and record no false result.

It is `python -m stages.pseudo_boxes 0`, and fails if what the stage depends on changed meanwhile:
DVC records nothing of a stage that failed. OVIS_RECEIPT names a file that gets what the result was
made from and with.
"""

import errno
import json
import os
import platform
import runpy
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path

from stages.guard import LOCK, changes, find_declared, other_packages

STAGE = "DVC_STAGE"  # which DVC sets for its commands
# How often a waiting thread of torch looks before it gives its core up (GNU OpenMP). By default it
# never does, and two trainings on two cores take twice as long as one after the other.
SPINS = ("GOMP_SPINCOUNT", "10000")
RECEIPT = "OVIS_RECEIPT"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
CODE = [Path(__file__).resolve().parents[1] / package for package in ("stages", "comparators")]


def main(package: str = "stages") -> None:
    """Run the stage of a package that the command line names; guarded if DVC runs it.

    Raises:
        SystemExit: the stage failed, its inputs changed, or the packages are not the lock's.
            What the user can mend is one line.
    """
    if len(sys.argv) < 2:
        raise SystemExit(f"usage: python -m {package} <stage> [its arguments]")
    name = f"{package}.{sys.argv.pop(1)}"
    os.environ.setdefault(*SPINS)  # read when torch is imported
    try:
        _run_guarded(name, os.environ.get(STAGE))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise SystemExit(f"{name}: {error}; make room and run the same again") from None
        if not _is_for_users(error):
            raise
        raise SystemExit(f"{name}: {error}") from None


def _is_for_users(error: Exception) -> bool:
    """Say whether the error names a file, or our own code raised it: it then says what to mend."""
    if isinstance(error, OSError) and error.filename is not None:
        return True
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    path = Path(frame.f_code.co_filename).resolve()
    return any(path.is_relative_to(folder) for folder in CODE)


def _run_guarded(name: str, stage: str | None) -> None:
    """Run a stage's module; if DVC runs it as `stage`, compare its inputs before and after."""
    if stage is None:
        _run(name)
        return
    declared, started = find_declared(stage), time.monotonic()
    before = declared.read()
    if LOCK in declared.paths and (found := other_packages(Path())):
        raise SystemExit(
            f"{stage}: {'; '.join(found)}; install {LOCK}, or write what is installed into it"
        )
    _run(name)
    try:
        changed = changes(before, declared.read())
    except (FileNotFoundError, ValueError) as error:  # params.yaml is gone, or half an edit
        changed = [str(error)]
    if changed:
        raise SystemExit(
            f"{stage} is not recorded, for this changed while it ran: {'; '.join(changed)};"
            " run the same again"
        )
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


def _made_with() -> dict[str, str]:
    """Return device, its model and the version of torch, as far as the stage used it."""
    made = {"python": platform.python_version(), "device": "cpu", "model": _processor()}
    if torch := sys.modules.get("torch"):
        made["torch"] = torch.__version__
        if torch.cuda.is_initialized():
            made |= {"device": "cuda", "model": torch.cuda.get_device_name()}
    return made


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


if __name__ == "__main__":
    main()
