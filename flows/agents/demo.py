"""`make agents-demo`: the smoke profile on a fleet on loopback that loses a machine in mid-run.

Prefect's server on PostgreSQL, a shared folder, and two machines with three workers; the one that
is killed together with its stage comes back no more. In the end every output must have the hash
that a local run gives. Works in .flows/demo, on clones of the current commit, and removes it.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from ruamel.yaml import YAML

from flows.agents.loopback import Loopback, share_folder
from flows.agents.service import Service
from flows.environment import STATE_FOLDER

PROFILE = "smoke"
SECONDS_AT_MOST = 45 * 60


def main() -> int:
    """Run the demonstration and return 0 if the fleet's outputs are those of the local run."""
    # A signal, or too long a time, must end servers and workers too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(SECONDS_AT_MOST)
    root = Path.cwd()
    folder = root / STATE_FOLDER / "demo"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    account = Account()
    account.say(f"local run of the profile {PROFILE}, for comparison")
    local = _clone(root, folder / "local/project")
    _flows(local, dict(os.environ), folder / "local.log", "run")
    account.say("local run done")
    project = _clone(root, folder / "fleet/project")
    share_folder(project)
    with Loopback(folder / "services") as fleet:
        database = "PostgreSQL" if fleet.database else "sqlite, as PostgreSQL is not installed"
        account.say(f"Prefect server on {database}, a shared folder as DVC remote")
        fleet.make_pools(project)
        doomed = fleet.add_agent(project, "one", "gpu")
        for pool in ("gpu", "cpu"):
            fleet.add_agent(project, "two", pool)
        account.say("machine one serves pool gpu, machine two serves gpu and cpu")
        killer = threading.Thread(target=_lose, args=(doomed, account), daemon=True)
        killer.start()
        _flows(project, fleet.environment, folder / "fleet.log", "run", "--pools")
        account.say("run on the fleet done; what it said of the loss:")
        for line in (folder / "fleet.log").read_text().splitlines():
            if "counts as lost" in line:
                account.say(f"  {line}")
        stopped = fleet.stop_agents()
        account.say(f"workers stopped {'cleanly' if stopped else 'only by force'}")
    same = _compare(_outputs(local), _outputs(project), account)
    found = not killer.is_alive()
    if not found:
        account.say("machine one got no stage, so nothing was lost: not the demonstration it is")
    if same and found:
        shutil.rmtree(folder)
    return int(not (same and found))


class Account:
    """Lines with the seconds since the start."""

    def __init__(self) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def say(self, line: str) -> None:
        """Print a line."""
        print(f"{time.monotonic() - self._started:6.0f} s  {line}", flush=True)


def _lose(machine: Service, account: Account) -> None:
    """Kill a machine's worker and all that it started as soon as a stage runs there."""
    while True:
        for process in machine.family():
            command = process.cmdline()
            stage = next((word for word in command if word.startswith("stages.")), None)
            if stage and "dvc" not in command:
                time.sleep(2)  # in the middle of its work
                machine.kill(with_children=True)
                what = " ".join(command[command.index(stage) :])
                account.say(f"machine one is lost, with its worker and {what} in it")
                return
        time.sleep(0.2)


def _clone(root: Path, folder: Path) -> Path:
    subprocess.run(["git", "clone", "--quiet", str(root), str(folder)], check=True)
    _flows(folder, dict(os.environ), folder.parent / "profile.log", "profile", PROFILE)
    return folder


def _flows(project: Path, environment: dict[str, str], log: Path, *arguments: str) -> None:
    """Run a command of the project's own flows; its last lines are shown if it fails."""
    command = [sys.executable, "-m", "flows", *arguments]
    environment = {**environment, "PYTHONPATH": str(project)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with log.open("w") as out:
        code = subprocess.run(
            command, cwd=project, env=environment, stdout=out, stderr=subprocess.STDOUT
        ).returncode
    if code:
        end = "\n".join(log.read_text().splitlines()[-30:])
        raise SystemExit(f"{' '.join(command)} ended with code {code}; see {log}\n{end}")


def _outputs(project: Path) -> dict[str, str]:
    stages = YAML(typ="safe").load(project / "dvc.lock")["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def _compare(local: dict[str, str], fleet: dict[str, str], account: Account) -> bool:
    different = sorted(path for path in local.keys() | fleet if local.get(path) != fleet.get(path))
    if different:
        account.say(f"{len(different)} of {len(local)} outputs differ: {', '.join(different[:5])}")
    else:
        account.say(f"all {len(local)} outputs have the hashes of the local run")
    return not different


if __name__ == "__main__":
    sys.exit(main())
