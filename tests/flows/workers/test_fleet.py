"""Faults of a fleet of real processes: Prefect's server, its database, workers in clones.

`make test-workers` runs these. The same on every fault: no wrong result, no finished work lost.
"""

import hashlib
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import psutil
import pytest

from tests.support.loopback import Loopback, share_folder
from tests.support.mounts import fill, small_disk
from tests.support.service import Service
from tests.support.toy import REPOSITORY, Toy, make_toy, make_training, until_step, wait_until
from tests.support.tracked import read_runs

pytestmark = [pytest.mark.workers, pytest.mark.xdist_group("fleet")]

LOSS_IS_SEEN = 120  # seconds, at most
SERVER_IS_AWAY = 30  # seconds
SECRET = {"PREFECT_API_AUTH_STRING": "team:secret"}
CANCEL = """
from prefect import get_client
from prefect.states import Cancelling
with get_client(sync_client=True) as client:
    runs = client.read_flow_runs()
    (run,) = [run for run in runs if run.name == "download" and run.state.is_running()]
    client.set_flow_run_state(run.id, Cancelling())
"""
ALL = ["cut 0", "cut 1", "download", "evaluation", "merge", "side"]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    fleet = Loopback(tmp_path_factory.mktemp("fleet"))
    fleet.environment |= {**SECRET, "PREFECT_SERVER_API_AUTH_STRING": "team:secret"}
    with fleet:
        fleet.make_pools(REPOSITORY)
        yield fleet


@pytest.fixture
def fleet(services: Loopback) -> Iterator[Loopback]:
    yield services
    services.stop_workers()


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Toy]:
    """Give a toy with a shared folder, where nothing ran yet."""
    toy = make_toy(tmp_path / "toy")
    with (toy.root / "stages/download/__main__.py").open("a") as code:
        code.write(f"# {tmp_path}\n")  # so that no other test has a run of the same inputs
    toy.git("add", "-A")
    toy.git("commit", "-qm", "unique")
    share_folder(toy.root)
    yield toy
    toy.end()


def worker(fleet: Loopback, project: Toy, name: str, **more: str) -> Service:
    return fleet.add_worker(project.root, name, "cpu", TOY_FOLDER=str(project.root), **more)


def start(fleet: Loopback, project: Toy, *arguments: str):
    server = {"PREFECT_API_URL": fleet.url, **SECRET}
    return project.start("-m", "flows", "run", "--pools", *arguments, **server)


def end(process, seconds: float = 1800) -> str:
    """Return the output and exit code; the bound only ends what hangs, on a loaded machine too."""
    output, _ = process.communicate(timeout=seconds)
    return f"{output}\nexit code {process.returncode}"


def stage_processes(machine: Service, name: str) -> list[psutil.Process]:
    return [run for run in machine.running("stages") if run.cmdline()[3:4] == [name]]


def until_it_runs(machine: Service, project: Toy, name: str) -> None:
    log = project.root / "runs.log"
    wait_until(lambda: log.exists() and name in log.read_text())
    assert stage_processes(machine, name)


def test_the_server_is_on_postgresql(services):
    if services.database is None:
        pytest.skip("PostgreSQL is not installed: the fleet's faults were tested on sqlite only")
    settings = services.server.environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
    assert settings.startswith("postgresql")


def test_two_workers_give_the_bytes_of_a_local_run(fleet, project):
    local = Toy(project.root.parent / "local")
    shutil.copytree(project.root, local.root)
    local.dvc("repro")
    worker(fleet, project, "one")
    worker(fleet, project, "two")
    output = end(start(fleet, project))
    assert "exit code 0" in output, output
    assert project.lock() == local.lock()
    assert project.ran() == ALL
    assert {"one-cpu", "two-cpu"} >= set(re.findall(r"executed on (\S+)", output)) != set()
    with closing(sqlite3.connect(project.root / "mlflow.db")) as database:
        tags = dict(database.execute("select key, value from tags where key like 'made.%'"))
    assert sorted(tags) == [f"made.{name.replace(' ', '.')}" for name in ALL]
    made = [json.loads(text) for text in tags.values()]
    assert {facts["worker"] for facts in made} <= {"one-cpu", "two-cpu"}
    assert all(facts["device"] == "cpu" and facts["seconds"] >= 0 for facts in made)
    began = time.monotonic()
    assert fleet.stop_workers()  # cleanly, and soon
    assert time.monotonic() - began < 30


def test_a_sweep_on_workers_makes_what_its_points_share_once(fleet, project):
    worker(fleet, project, "one")
    worker(fleet, project, "two")
    identity = {
        f"GIT_{role}_{fact}": "toy@localhost"
        for role in ("AUTHOR", "COMMITTER")
        for fact in ("NAME", "EMAIL")
    }
    server = {"PREFECT_API_URL": fleet.url, **SECRET, **identity}
    arguments = ("sweep", "--pools", "-S", "side.factor=2,3")
    process = project.start("-m", "flows", *arguments, **server)
    output = end(process)
    assert "exit code 0" in output, output
    assert project.ran() == [*ALL, "side"]  # by workers, who report here
    assert "2 of 2 points done; their stages: 7 executed, 5 restored" in output
    assert re.search(r"^side.factor=3 \[side\] executed on (one|two)-cpu", output, re.MULTILINE)
    for factor in (2, 3):
        point = Toy(project.root / f".sweeps/points/side.factor={factor}")
        point.dvc("pull")
        assert (point.root / "data/side/out.txt").read_text() == "b\nb\nb\n" * factor


def test_other_branches_go_on_when_a_stage_fails_and_it_alone_is_made_again(fleet, project):
    failing = project.mark("fail.side")
    worker(fleet, project, "one")
    output = end(start(fleet, project, "side", "cut"))
    assert "exit code 1" in output, output
    assert re.search(r"side failed(.|\n)*the disk is on fire", output)
    assert project.ran() == ["cut 0", "cut 1", "download", "side"]  # each once
    failing.unlink()
    output = end(start(fleet, project, "side", "cut"))
    assert "exit code 0" in output, output
    assert project.ran() == ["side"]


def test_a_lost_machine_is_noticed_and_its_stage_runs_elsewhere(fleet, project):
    project.mark("slow.download", "600")
    doomed = worker(fleet, project, "one")
    process = start(fleet, project, "download")
    until_it_runs(doomed, project, "download")
    doomed.kill(with_children=True)
    lost = time.monotonic()
    (project.root / "slow.download").unlink()
    worker(fleet, project, "two")
    output = read_until(process, "counts as lost")
    assert time.monotonic() - lost < LOSS_IS_SEEN
    output += end(process)
    assert "exit code 0" in output, output
    assert "executed on two-cpu" in output
    project.dvc("pull", "download")
    assert (project.root / "data/download/parts/a.txt").read_text() == "a\na\na\n"
    assert project.ran() == ["download", "download"]


def read_until(process, text: str) -> str:
    """Return the coordinator's output so far, as soon as it has told of something."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError(f"{text!r} never came:\n{''.join(lines)}")


@pytest.fixture
def training(project: Toy) -> Toy:
    make_training(project)
    return project


@pytest.mark.parametrize("loss", ["machine", "preemption"])
def test_a_training_goes_on_elsewhere_from_the_step_it_reached(fleet, training, loss):
    local = Toy(training.root.parent / "local")
    shutil.copytree(training.root, local.root)
    local.dvc("repro", "download")
    more = {"TOY_STEP": "0.1", "OVIS_RESUME_PERIOD": "1"}
    hold = training.mark("hold.step")
    doomed = worker(fleet, training, "one", **more)
    process = start(fleet, training, "download")
    until_step(training, 10)
    if loss == "machine":
        names = {"index.json", hashlib.md5(b"ab" * 5).hexdigest()}  # of the tenth step's point
        remote = training.root.parent / "store/resume"
        wait_until(lambda: {path.name for path in remote.glob("*/*")} == names)
        doomed.kill(with_children=True)
    else:
        assert doomed.stop()
    lost = time.monotonic()
    hold.unlink()
    worker(fleet, training, "two", **more)
    output = read_until(process, "counts as lost" if loss == "machine" else "Preempted: one-cpu")
    assert time.monotonic() - lost < LOSS_IS_SEEN
    output += end(process)
    assert "exit code 0" in output, output
    assert "executed on two-cpu" in output
    assert (training.root / "starts.log").read_text().split() == ["0", "10"]
    assert training.lock() == local.lock()
    assert not list((training.root.parent / "store/resume").rglob("*.*"))


def test_the_experiment_is_a_deployment(fleet, project):
    clone = Toy(project.root.parent / "three")
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{clone.root}/mlflow.db"}
    fleet.add_worker(project.root, "three", "experiment", **store)
    deployment = "ovis-dag-experiment/experiment"
    for arguments in (["--param", 'targets=["cut"]'], [], []):
        command = [sys.executable, "-m", "prefect", "deployment", "run", deployment, "--watch"]
        done = subprocess.run(
            [*command, *arguments], env=fleet.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert clone.ran() == ALL  # each once, and nothing by the third
    names = [run.tags["mlflow.runName"] for run in read_runs(clone.root)]
    assert names[0] == "first run" and len(names) == 2
    assert {run.status for run in read_runs(clone.root)} == {"FINISHED"}


def test_a_killed_worker_leaves_its_stage_to_finish(fleet, project):
    hold = project.mark("hold.download")
    doomed = worker(fleet, project, "one")
    process = start(fleet, project, "download")
    until_it_runs(doomed, project, "download")
    doomed.kill(with_children=False)
    hold.unlink()
    output = end(process)
    assert "exit code 0" in output, output
    assert project.ran() == ["download"]


def test_a_worker_that_is_stopped_takes_its_stage_along_and_another_makes_it_at_once(
    fleet, project
):
    project.mark("slow.download", "600")
    leaving = worker(fleet, project, "one")
    process = start(fleet, project, "download")
    until_it_runs(leaving, project, "download")
    stage = stage_processes(leaving, "download")
    assert leaving.stop()
    assert not any(one.is_running() for one in stage)
    (project.root / "slow.download").unlink()
    worker(fleet, project, "two")
    output = read_until(process, "Preempted: one-cpu was stopped")
    output += end(process)
    assert "exit code 0" in output, output
    assert "executed on two-cpu" in output
    assert "counts as lost" not in output


def test_a_stage_survives_a_restart_of_the_server(fleet, project):
    """The stage ends while there is no server."""
    hold = project.mark("hold.download")
    machine = worker(fleet, project, "one")
    process = start(fleet, project, "cut")
    until_it_runs(machine, project, "download")
    fleet.server.stop()
    hold.unlink()
    time.sleep(SERVER_IS_AWAY)
    fleet.server.start()
    fleet.wait_until_ready()
    output = end(process)
    assert "exit code 0" in output, output
    assert project.ran() == ["cut 0", "cut 1", "download"]


def test_a_killed_coordinator_finds_its_stage_again(fleet, project):
    hold = project.mark("hold.download")
    machine = worker(fleet, project, "one")
    first = start(fleet, project, "download")
    until_it_runs(machine, project, "download")
    first.kill()
    first.communicate()
    second = start(fleet, project, "download")
    hold.unlink()
    output = end(second)
    assert "exit code 0" in output, output
    assert project.ran() == ["download"]


def test_a_stage_that_two_coordinators_want_is_made_once(fleet, project):
    project.mark("slow.download", "20")
    other = Toy(project.root.parent / "other")
    shutil.copytree(project.root, other.root)
    machine = worker(fleet, project, "one")
    both = [start(fleet, project, "download")]
    until_it_runs(machine, project, "download")
    both.append(start(fleet, other, "download"))
    try:
        for output in map(end, both):
            assert "exit code 0" in output, output
    finally:
        other.end()
    assert project.ran() == ["download"]
    assert project.lock() == other.lock()


def test_a_stopped_coordinator_stops_its_stages(fleet, project):
    project.mark("slow.download", "600")
    machine = worker(fleet, project, "one")
    process = start(fleet, project, "download")
    until_it_runs(machine, project, "download")
    process.terminate()
    assert "run the same again to go on from here" in end(process, 60)
    wait_until(lambda: not stage_processes(machine, "download"), 60)


def test_a_stage_that_a_person_cancels_is_not_made_again(fleet, project):
    project.mark("slow.download", "600")
    machine = worker(fleet, project, "one")
    process = start(fleet, project, "download")
    until_it_runs(machine, project, "download")
    command = [sys.executable, "-c", CANCEL]
    subprocess.run(command, env=fleet.environment, check=True)
    output = end(process)
    assert "exit code 1" in output, output
    assert "download was cancelled on Prefect's server" in output
    assert project.ran() == ["download"]
    wait_until(lambda: not stage_processes(machine, "download"), 60)


def test_an_unfit_worker_leaves_while_the_good_one_is_busy(fleet, project):
    worker(fleet, project, "one")
    busy = start(fleet, project, "download")
    assert "exit code 0" in end(busy)
    hold = project.mark("hold.side")
    other = Toy(project.root.parent / "other")
    shutil.copytree(project.root, other.root)
    busy = start(fleet, other, "side")
    project.until_it_runs("side")
    more = {"TOY_FOLDER": str(project.root), "OVIS_THREADS": "3"}
    unfit = fleet.add_worker(project.root, "two", "cpu", **more)
    process = start(fleet, project, "cut@0")
    try:
        output = read_until(process, "has left the pool")
        assert unfit.process.wait(60) == 1
        hold.unlink()
        output += end(process)
        assert "exit code 0" in end(busy)
    finally:
        other.end()
    assert "exit code 0" in output, output
    assert "executed on one-cpu" in output
    last = unfit.log.read_text().splitlines()[-1]
    left = r"^ovis-dag: worker two-cpu has left pool .*OVIS_THREADS 3 \(coordinator: "
    assert re.search(left, last)


def test_a_disk_that_fills_up_under_a_stage(fleet, project):
    """A clone on a small file system of its own; the other worker has room."""
    small = project.root.parent / "one"
    shutil.copytree(project.root, small)
    project.git("-C", str(small), "remote", "add", "origin", str(project.root))
    with ExitStack() as ends:
        ends.enter_context(small_disk(small / ".flows", "80m"))  # test_workers.py has a stand-in
        ends.callback(fleet.stop_workers)
        hold = project.mark("hold.download")
        machine = worker(fleet, project, "one")
        process = start(fleet, project, "download")
        until_it_runs(machine, project, "download")
        fill(small / ".flows")
        hold.unlink()
        first = read_until(process, "has left the pool")
        worker(fleet, project, "two")
        output = first + end(process)
    assert "exit code 0" in output, output
    assert "No space left on device" in output
    assert "executed on two-cpu" in output
