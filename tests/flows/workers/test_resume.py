"""Resume points go through the remote, and starts that came further are not counted."""

import json
import shutil
import signal
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from flows.dvc import resume
from flows.dvc.resume import ResumePoint
from flows.stage import StageFailedError
from flows.workers.dispatch import LostError
from flows.workers.stage_flow import reproduce
from tests.support.fleet import Workers, make_fleet, request_for, run_on, store
from tests.support.toy import Toy, make_training, until_step

KEY = "0" * 64


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setenv("OVIS_PATIENCE", "0")


@dataclass
class Machine:
    """What one machine has of the point of KEY."""

    root: Path
    told: list[str]

    @property
    def state(self) -> Path:
        return self.root / "points/abc/state.safetensors"

    def reach(self, text: str) -> None:
        self.state.parent.mkdir(parents=True, exist_ok=True)
        self.state.with_name(f".{text}.partial").write_text("half of it")
        self.state.unlink(missing_ok=True)
        self.state.write_text(text)

    def start(self) -> ResumePoint:
        point = ResumePoint(self.root, self.root / "points", KEY)
        point.pull(self.told.append)
        return point

    def push(self, point: ResumePoint) -> None:
        point.push(self.told.append)


@pytest.fixture
def machines(toy) -> list[Machine]:
    return [Machine(clone, []) for clone in make_fleet(toy, 2).clones]


def test_another_machine_goes_on_where_one_was_lost_and_only_from_there(toy, machines):
    one, two = machines
    point = one.start()
    one.push(point)  # nothing yet
    assert not (store(toy) / "resume").exists()
    for text in ("step 1", "step 2"):
        one.reach(text)
        one.push(point)
    other = two.start()
    assert two.state.read_text() == "step 2"
    assert [path.name for path in two.state.parent.iterdir()] == ["state.safetensors"]
    assert len(list((store(toy) / "resume" / KEY).iterdir())) == 2  # the point and its index
    # What went on here from the remote's point is kept; what did so elsewhere is newer.
    one.reach("step 3")
    one.start()
    assert one.state.read_text() == "step 3"
    two.reach("step 4")
    two.push(other)
    one.start()
    assert one.state.read_text() == "step 4"
    other.remove()
    assert not list((store(toy) / "resume").rglob("*.*"))
    assert not two.state.exists()


@pytest.mark.parametrize("harm", ["cut", "deleted", "outside"])
def test_a_point_that_is_of_no_use_is_told_and_left(toy, machines, harm):
    one, two = machines
    one.reach("step 1")
    one.push(one.start())
    folder = store(toy) / "resume" / KEY
    (blob,) = set(folder.iterdir()) - {folder / "index.json"}
    if harm == "cut":
        blob.write_text("step")
    elif harm == "deleted":
        blob.unlink()
    else:
        index = folder / "index.json"
        index.write_text(index.read_text().replace("abc/", "../../"))
    two.start()
    assert "is of no use" in two.told[0]
    assert list((two.root / "points").iterdir()) == []


def test_a_point_that_is_too_large_stays_here(toy, machines, monkeypatch):
    monkeypatch.setattr(resume, "MOST_BYTES", 5)
    one = machines[0]
    one.reach("step 1")
    one.push(one.start())
    assert "too many for the remote" in one.told[0]
    assert not (store(toy) / "resume").exists()


def test_starts_that_came_further_are_not_counted(machines):
    one, two = machines
    assert [one.start().count_start("run", start) for start in (1, 2, 3)] == [1, 2, 3]
    point = one.start()
    one.reach("step 1")
    one.push(point)
    assert [two.start().count_start("run", start) for start in (4, 5)] == [1, 2]
    two.reach("step 2")
    two.push(two.start())
    assert one.start().count_start("run", 6) == 1
    assert two.start().count_start("run", 7) == 2
    assert two.start().count_start("another", 1) == 1


def test_a_stage_that_comes_no_further_is_given_up_and_one_that_does_is_not(toy, monkeypatch):
    monkeypatch.setenv("TOY_FOLDER", str(toy.root))
    clone = make_fleet(toy).clones[0]
    request = request_for(toy, "download")
    with pytest.raises(StageFailedError, match="3 machines were lost while they ran it"):
        reproduce(clone, request, "run-4", print, "run", 4)
    assert toy.ran() == []
    # Each loss came further than the one before.
    elsewhere = Machine(toy.root, [])
    for start in range(1, 9):
        point = ResumePoint(toy.root, toy.root / "points", request.key)
        point.pull(print)
        assert point.count_start("run", start) == 1
        elsewhere.reach(f"step {start}")
        elsewhere.push(point)
    shutil.rmtree(toy.root / "points")
    assert reproduce(clone, request, "run-9", print, "run", 9).outcome == "executed"
    assert not list((store(toy) / "resume").rglob("*.*"))


def test_attempts_count_from_where_the_last_one_came_further(toy):
    """Three without progress are given up, however many came further before."""
    workers, elsewhere = make_fleet(toy), Machine(toy.root, [])
    steps = [1, 1, 1, 2, 3, 3, 3, 3]

    def crash(request, attempt):
        elsewhere.reach(f"step {steps.pop(0)}")
        elsewhere.push(ResumePoint(toy.root, toy.root / "points", request.key))
        raise LostError("Crashed: exit code -9")

    workers.upset = crash
    with pytest.raises(StageFailedError, match="download: given up after 3 attempts:\n  Crashed: "):
        run_on(workers, toy, "download")
    further = "lost after it came further"
    counted = [f"attempt {count} of 3" for count in (1, 2, 3)]
    told = [line.partition(":")[0] for line in workers.logged]
    assert told == [further, *counted[:2], further, further, *counted]
    assert steps == []


# A shell gives what it runs in the background no Ctrl-C; a worker's process takes it all the same.
REPRODUCE = """
import json, signal, sys
from pathlib import Path
from flows.workers.stage_flow import reproduce
from flows.workers.request import Request
signal.signal(signal.SIGINT, signal.default_int_handler)
reproduce(Path.cwd(), Request(**json.loads(sys.argv[1])), "run-1", print, "run", 1)
"""


@pytest.mark.parametrize("loss", [signal.SIGINT, signal.SIGKILL])
def test_a_training_that_was_stopped_or_lost_gives_the_same_bytes_elsewhere(toy, monkeypatch, loss):
    make_training(toy)
    local = Toy(toy.root.parent / "local")
    shutil.copytree(toy.root, local.root)
    local.dvc("repro", "download")
    one, two = make_fleet(toy, 2).clones
    request = request_for(toy, "download")
    monkeypatch.setenv("TOY_FOLDER", str(toy.root))
    period = "600" if loss == signal.SIGINT else "0.2"  # who is stopped pushes the last step
    more = {"TOY_STEP": "1", "OVIS_RESUME_PERIOD": period, "OVIS_STOP_ORPHANS": "1"}
    arguments = ["-c", REPRODUCE, json.dumps(asdict(request))]
    worker = Toy(one).start(*arguments, **more)
    until_step(toy, 5)
    worker.send_signal(loss)
    worker.communicate()
    shutil.rmtree(one / ".resume")
    assert reproduce(two, request, "run-2", print, "run", 2).outcome == "executed"
    first, second = map(int, (toy.root / "starts.log").read_text().split())
    assert first == 0
    assert second >= 4
    assert run_on(Workers([]), toy, "download") == {"download": "restored"}
    assert toy.lock() == local.lock()
