"""`make workers-demo`: the smoke profile on workers on loopback, one of which is lost in mid-run.

It starts Prefect's server on PostgreSQL, a shared folder, and two machines. One machine is killed
together with its stage and does not come back. In the end dvc.lock must have the bytes of a local
run. It works in .flows/demo, on clones of the current commit, and removes that folder.
"""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ruamel.yaml import YAML

from flows.environment import STATE_FOLDER
from flows.resources import FEWER
from tests.support.loopback import Loopback, environment_without_servers, share_folder
from tests.support.service import Service

PROFILE = "smoke"
SECONDS_AT_MOST = 45 * 60
SECONDS_OF_WORK = 2  # how long a stage has run when its machine is lost


def main() -> int:
    """Run the demonstration; return 0 if the workers' result equals that of the local run."""
    # A signal, or too long a time, must end servers and workers too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(SECONDS_AT_MOST)
    root = Path.cwd()
    folder = root / STATE_FOLDER / "demo"
    shutil.rmtree(folder, ignore_errors=True)
    account = Account()
    account.say(f"profile {PROFILE} on this machine alone, for comparison")
    local = _clone(root, folder / "local")
    with _flows(local, environment_without_servers(), "run"):
        pass
    project = _clone(root, folder / "fleet")
    share_folder(project)
    with Loopback(folder / "services") as fleet:
        database = "PostgreSQL" if fleet.database else "sqlite, as PostgreSQL is not installed"
        account.say(f"done; now a Prefect server on {database}, and a shared folder as DVC remote")
        fleet.make_pools(project)
        _run_and_lose_a_machine(fleet, project, account)
        stopped = fleet.stop_workers()
        account.say(f"workers stopped {'cleanly' if stopped else 'only by force'}")
    if not _compare(local, project, account):
        account.say(f"what both made, and all logs, are left in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


class Account:
    """Lines with the seconds since the start."""

    def __init__(self) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def say(self, line: str) -> None:
        """Print a line."""
        print(f"{time.monotonic() - self._started:5.0f} s  {line}", flush=True)


def _run_and_lose_a_machine(fleet: Loopback, project: Path, account: Account) -> None:
    cores = {FEWER: "1"}  # also in pool gpu
    doomed = fleet.add_worker(project, "one", "gpu", **cores)
    fleet.add_worker(project, "two", "cpu")
    account.say(
        "machine one serves pool gpu, machine two serves pool cpu; the same profile on them"
    )
    with _flows(project, fleet.environment, "run", "--pools") as run:
        while not (stages := doomed.running("stages")) and run.process.poll() is None:
            time.sleep(0.2)
        if stages:
            fleet.add_worker(project, "two", "gpu", **cores)
            account.say("machine two serves pool gpu too")
            time.sleep(SECONDS_OF_WORK)
            what = " ".join(stages[-1].cmdline()[1:])
            doomed.kill(with_children=True)
            account.say(f"machine one is lost: its worker and `{what}` are killed")
    account.say("the run is done; what it said of the loss, and where stages ran:")
    told = run.log.read_text(encoding="utf-8")
    for line in re.findall(r"^.*counts as lost.*$", told, re.MULTILINE):
        account.say(f"  {line}")
    for worker, count in Counter(re.findall(r"executed on (\S+)", told)).items():
        account.say(f"  {count} stages and shards on {worker}")


def _clone(root: Path, folder: Path) -> Path:
    project = folder / "project"
    subprocess.run(["git", "clone", "--quiet", str(root), str(project)], check=True)
    # Workers refuse a commit that is on no branch, as one that was checked out by its hash may be.
    subprocess.run(["git", "-C", str(project), "switch", "--quiet", "-C", "demo"], check=True)
    with _flows(project, environment_without_servers(), "profile", PROFILE):
        pass
    return project


@contextmanager
def _flows(project: Path, environment: dict[str, str], *arguments: str) -> Iterator[Service]:
    """Run a command of the project's own flows during the block, and wait for its end.

    Raises:
        SystemExit: it failed; the message has its last lines.
    """
    command = [sys.executable, "-m", "flows", *arguments]
    environment = {**environment, "PYTHONPATH": str(project)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    run = Service(command, project, environment, project.parent / f"{arguments[0]}.log")
    run.start()
    try:
        yield run
        code = run.process.wait()
    finally:
        run.stop()
    if code:
        end = "\n".join(run.log.read_text(encoding="utf-8").splitlines()[-30:])
        raise SystemExit(f"{' '.join(command)} ended with code {code}; see {run.log}\n{end}")


def _compare(local: Path, fleet: Path, account: Account) -> bool:
    here, there = _outputs(local), _outputs(fleet)
    different = sorted(path for path in here.keys() | there if here.get(path) != there.get(path))
    same = (local / "dvc.lock").read_bytes() == (fleet / "dvc.lock").read_bytes()
    if different:
        account.say(f"{len(different)} of {len(here)} outputs differ: {', '.join(different[:5])}")
    else:
        account.say(f"all {len(here)} outputs have the hashes of the local run")
    account.say(f"dvc.lock is {'the same, byte for byte' if same else 'not the same'}")
    return same


def _outputs(project: Path) -> dict[str, str]:
    stages = YAML(typ="safe").load(project / "dvc.lock")["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


if __name__ == "__main__":
    sys.exit(main())
