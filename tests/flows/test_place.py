"""One place for all worktrees: what two of them want is made once, here or on workers."""

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pytest

from flows.dvc.plan import make_plan
from flows.dvc.project import load_graph
from flows.graph import Outcome, Stage
from flows.place import Machine, Place
from flows.resources import CoreBudget, DeviceSlots
from flows.stage import StageFailedError
from flows.sweeps.plan import plan_sweep
from flows.sweeps.points import make_points
from flows.workers.coordinator import Fleet
from tests.support.fleet import Workers, make_fleet, store
from tests.support.toy import Toy

MORE = """\
stages:
  twice:
    wdir: ..
    cmd: cat data/side/out.txt data/side/out.txt > data/twice.txt
    deps:
      - data/side/out.txt
    outs:
      - data/twice.txt
  size:
    wdir: ..
    cmd: echo '{"bytes":' $(wc -c < data/twice.txt)'}' > data/size.json
    deps:
      - data/twice.txt
    metrics:
      - data/size.json
"""


@dataclass
class Pretended:
    """A maker that writes down what it is asked for."""

    make: Callable[[Stage], None] = lambda stage: None
    asked: list[tuple[str, int]] = field(default_factory=list)

    def run(self, stage: Stage, order: int, log: Callable[[str], None]) -> Outcome:
        self.asked.append((stage.name, stage.cores))
        self.make(stage)
        return Outcome(stage.name, stage.group, "executed")

    def stop(self) -> None:
        raise AssertionError("nobody stops this")


def two(toy: Toy, *makers: Pretended) -> tuple[Place, list[Stage]]:
    """Return a place of two copies of the toy, which want the same, and the stages of each."""
    other = toy.root.parent / "other"
    shutil.copytree(toy.root, other)
    place = Place(dict(zip((toy.root, other), makers, strict=True)))
    return place, list(load_graph(toy.root).values())


def test_who_wants_a_result_that_is_being_made_waits_for_it_and_takes_it(toy):
    events, begun, go = [], threading.Event(), threading.Event()

    def make(stage: Stage) -> None:
        begun.set()
        go.wait(60)
        events.append("made")

    makers = Pretended(make), Pretended(lambda stage: events.append("taken"))
    place, (download, *_) = two(toy, *makers)
    other = toy.root.parent / "other"
    with ThreadPoolExecutor() as pool:
        first = pool.submit(place.run, toy.root, download, 0, print)
        assert begun.wait(60)
        second = pool.submit(place.run, other, download, 1, print)
        with pytest.raises(TimeoutError):
            second.result(2)
        go.set()
        first.result(60), second.result(60)
    assert events == ["made", "taken"]


def test_another_result_is_not_waited_for(toy):
    makers = Pretended(), Pretended()
    place, (download, *_) = two(toy, *makers)
    other = Toy(toy.root.parent / "other")
    other.replace("lines: 3", "lines: 4")
    place.run(toy.root, download, 0, print)
    place.run(other.root, load_graph(other.root)["download"], 0, print)
    assert [maker.asked for maker in makers] == [[("download", 1)]] * 2


def test_what_only_restores_takes_one_core(done_toy):
    makers = Pretended(), Pretended()
    place, _ = two(done_toy, *makers)
    merge = load_graph(done_toy.root)["merge"]
    for folder in (done_toy.root, done_toy.root.parent / "other"):
        place.run(folder, merge, 0, print)
    assert [maker.asked for maker in makers] == [[("merge", 64)], [("merge", 1)]]


def test_what_the_cache_has_needs_no_device(done_toy, monkeypatch, tmp_path):
    slots = DeviceSlots(["one"], tmp_path / "locks")
    monkeypatch.setattr("flows.place.DeviceSlots", lambda: slots)
    out = done_toy.root / "data/merge/all.txt"
    out.unlink()
    merge = replace(load_graph(done_toy.root)["merge"], gpus=8)
    place = Place({done_toy.root: Machine(done_toy.root, CoreBudget(1))})
    assert place.run(done_toy.root, merge, 0, print).outcome == "restored"
    done_toy.replace("by: 1", "by: 3")
    with pytest.raises(StageFailedError, match="8 CUDA devices are wanted"):
        place.run(done_toy.root, replace(load_graph(done_toy.root)["cut@0"], gpus=8), 0, print)


def test_what_failed_is_not_made_again_for_others(toy):
    def fail(stage: Stage) -> None:
        raise StageFailedError("the disk is on fire")

    makers = Pretended(fail), Pretended()
    place, (download, *_) = two(toy, *makers)
    for folder in (toy.root, toy.root.parent / "other"):
        with pytest.raises(StageFailedError, match="on fire"):
            place.run(folder, download, 0, print)
    assert makers[1].asked == []


def run_here(toy: Toy) -> dict[str, str]:
    place = Place({toy.root: Machine(toy.root, CoreBudget(2))})
    steps = make_plan(toy.root)
    return {
        s.stage.name: place.run(toy.root, s.stage, k, print).outcome for k, s in enumerate(steps)
    }


def test_a_local_run_takes_what_the_remote_has_and_computes_the_rest(toy, done, capsys):
    make_fleet(toy, 0)
    colleague = Toy(toy.root.parent / "colleague")
    shutil.copytree(toy.root, colleague.root)
    colleague.dvc("repro", "cut")
    colleague.dvc("push", "--run-cache")
    colleague.ran()
    outcomes = run_here(toy)
    assert [name for name in outcomes if outcomes[name] == "restored"] == [
        "download",
        "cut@0",
        "cut@1",
    ]
    assert toy.ran() == ["evaluation", "merge", "side"]
    assert toy.root.joinpath("data/merge/all.txt").read_bytes() == (
        done.root.joinpath("data/merge/all.txt").read_bytes()
    )


def test_a_local_run_goes_on_without_a_remote_that_is_away_and_says_so_once(toy, capsys):
    make_fleet(toy, 0)
    store(toy).rmdir()
    assert set(run_here(toy).values()) == {"executed"}
    told = [line for line in capsys.readouterr().out.splitlines() if "there is no folder" in line]
    assert len(told) == 1
    assert "not looked for results there any more" in told[0]


@pytest.fixture
def sweeping(toy, monkeypatch) -> Toy:
    """Give a toy for sweeps with workers, with a pipeline that plain DVC does not see."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "toy")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "toy@localhost")
    monkeypatch.setenv("TOY_FOLDER", str(toy.root))
    (toy.root / "more").mkdir()
    toy.mark("more/.dvcignore", "/dvc.yaml\n")  # which worktrees and workers do without
    toy.mark("more/dvc.yaml", MORE)
    toy.git("add", "-A")
    toy.git("commit", "-qm", "more")
    return toy


def test_points_of_a_sweep_are_made_by_workers_each_result_once(sweeping):
    toy = sweeping
    workers: Workers = make_fleet(toy, 2)
    points = make_points(toy.root, ["side.factor=2,3"], targets=["side"])
    planned = plan_sweep(toy.root, points).points
    place = Place({point.folder: Fleet(point.folder, workers) for point in planned})
    outcomes = [
        {s.stage.name: place.run(one.folder, s.stage, 0, print).outcome for s in one.steps}
        for one in planned
    ]
    assert set(outcomes[0].values()) == {"executed"}
    assert [name for name, outcome in outcomes[1].items() if outcome == "executed"] == ["side"]
    assert toy.ran() == ["download", "side", "side"]
    for one in planned:
        Toy(one.folder).dvc("pull", "side")
    texts = [(one.folder / "data/side/out.txt").read_text() for one in planned]
    assert [len(text) for text in texts] == [12, 18]


def test_a_worker_makes_a_stage_of_a_pipeline_that_plain_dvc_does_not_see(sweeping):
    workers: Workers = make_fleet(sweeping)
    target = "more/dvc.yaml:size"
    points = make_points(sweeping.root, ["side.factor=3"], targets=[target])
    (planned,) = plan_sweep(sweeping.root, points).points
    place = Place({planned.folder: Fleet(planned.folder, workers)})
    for step in planned.steps:
        assert place.run(planned.folder, step.stage, 0, print).outcome == "executed"
    assert workers.asked == ["download", "side", "more/dvc.yaml:twice", target]
    assert (planned.folder / "data/size.json").read_text() == '{"bytes": 36}\n'
    lock = (planned.folder / "more/dvc.lock").read_text()
    assert "  twice:\n" in lock and "  size:\n" in lock
