"""Sweeps of the toy project: their worktrees, and the whole in real processes."""

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from flows.dvc import command
from flows.environment import stage_environment
from flows.graph import Outcome
from flows.sweeps.plan import PlannedPoint, Worktrees, only_sweep, plan_sweep, preview, worktree
from flows.sweeps.points import Point, make_points
from tests.support.models_lock import write_lock
from tests.support.service import kill_all
from tests.support.toy import Toy, wait_until
from tests.support.tracked import read_runs

needs_prefect = [pytest.mark.usefixtures("prefect_server"), pytest.mark.xdist_group("prefect")]
AP50 = "evaluation/detector/generalized/novel/segm/AP50"


@pytest.fixture(autouse=True)
def identity(monkeypatch):
    """Let git commit where nobody told it a name."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "toy")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "toy@localhost")


def ran(toy: Toy) -> list[str]:
    """Return what really executed in all worktrees since the last call, sorted."""
    logs = sorted((toy.root / ".sweeps/points").glob("*/runs.log"))
    lines = sorted(line for log in logs for line in log.read_text().splitlines())
    for log in logs:
        log.unlink()
    return lines


def parents(root: Path) -> list[str]:
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        query = "select run_uuid from tags where key = 'sweep.workspace'"
        return [run for (run,) in database.execute(query)]


def test_worktree_is_the_workspace_with_other_params(toy):
    toy.mark("new.txt", "new")
    toy.replace("factor: 2", "factor: 5")
    (toy.root / "stages/cut/__init__.py").unlink()
    (toy.root / ".dvc/config.local").write_text("['remote \"far\"']\n    url = ../far\n")
    before = toy.git("status", "--porcelain")
    point = Point("cut.by=7", {"cut.by": 7})
    folder = Worktrees(toy.root).place(point)
    assert folder == worktree(toy.root, point)
    assert (folder / "params.yaml").read_text() == (toy.root / "params.yaml").read_text().replace(
        "by: 1", "by: 7"
    )
    assert (folder / "new.txt").read_text() == "new"
    assert not (folder / "stages/cut/__init__.py").exists()
    assert toy.git("status", "--porcelain") == before
    inside = Toy(folder)
    assert Path(inside.dvc("cache", "dir").strip()) == toy.root / ".dvc/cache"
    remote = (folder / ".dvc/config.local").read_text()
    assert str(Path(os.path.relpath(toy.root / "far", folder / ".dvc"))) in remote

    # What a killed sweep left in a worktree of the same state stays; another state replaces it.
    (folder / "dvc.lock").write_text("half done")
    assert Worktrees(toy.root).place(point) == folder
    assert (folder / "dvc.lock").read_text() == "half done"
    (toy.root / "new.txt").unlink()
    Worktrees(toy.root).place(point)
    assert not (folder / "new.txt").exists()
    assert not (folder / "dvc.lock").exists()


def test_what_the_workspace_made_is_cached_in_the_plan(done_toy):
    points = make_points(done_toy.root, ["cut.by=1,2", "side.factor=2,3"])
    plan = plan_sweep(done_toy.root, points)
    # In all points, distinct, cached, to run.
    assert plan.counts() == {
        "download": (4, 1, 1, 0),
        "cut": (8, 4, 2, 2),
        "merge": (4, 2, 1, 1),
        "evaluation": (4, 2, 1, 1),
        "side": (4, 2, 1, 1),
    }


def test_a_preview_keeps_only_the_worktrees_that_were_there(toy):
    points = make_points(toy.root, ["cut.by=1,2"])
    folder = Worktrees(toy.root).place(points[1])
    (folder / "left.txt").touch()  # by a killed sweep
    assert preview(toy.root, points[:1]).summary().startswith("1 point, 6 stage runs: ")
    assert preview(toy.root, points).summary().startswith("2 points, 12 stage runs: ")
    assert list(folder.parent.iterdir()) == [folder]
    assert (folder / "left.txt").is_file()
    assert toy.git("worktree", "list").count("\n") == 2


def test_worktree_in_use_is_not_changed(toy, tmp_path):
    point = Point("cut.by=7", {"cut.by": 7})
    folder = Worktrees(toy.root).place(point)
    hold, output = (Toy(folder).mark(name) for name in ("hold.download", "slow.output"))
    log = tmp_path / "server.log"
    orphan = command.run(["repro", "-s", "download"], folder, stage_environment(), output, log)
    try:
        wait_until((folder / "runs.log").exists)
        assert Worktrees(toy.root).place(point) == folder  # same state: it may go on
        toy.replace("factor: 2", "factor: 5")
        with pytest.raises(RuntimeError, match=f"process {orphan.pid} still makes a stage there"):
            Worktrees(toy.root).place(point)
    finally:
        hold.unlink()
        wait_until(lambda: orphan.poll() is not None)


def test_one_sweep_at_a_time(tmp_path):
    with (
        only_sweep(tmp_path),
        pytest.raises(RuntimeError, match="another sweep"),
        only_sweep(tmp_path),
    ):
        pass
    with only_sweep(tmp_path):
        pass


def tags_of(name: str, root: Path) -> dict[str, str]:
    return next(run.tags for run in read_runs(root) if run.tags["mlflow.runName"] == name)


def test_a_point_tells_what_its_models_learned_from(toy):
    from flows.sweeps.flow import record_point  # imports MLflow

    write_lock(toy.root, {"detector": "d2", "finetune": "f2"})
    planned = PlannedPoint(Point("one", {}), toy.root, [], {})
    outcomes = [Outcome("side", "side", "failed")]
    told = record_point.fn(planned, outcomes, SimpleNamespace(publish=lambda *own: None))
    assert told.failed and told.supervision["detector"] == "masks and phrases"


RUNS_OF_POINTS = """
from contextlib import ExitStack
from pathlib import Path
from flows.sweeps.flow import open_run
from flows.sweeps.plan import PlannedPoint
from flows.sweeps.points import Point
with ExitStack() as runs:
    for seed in (0, 1, 0):
        point = PlannedPoint(Point("one", {"seed": seed}), Path.cwd(), [], {})
        print("run", open_run(point, "parent", runs).run_id)
"""


def test_a_run_in_mlflow_is_that_of_a_points_name_and_values(toy):
    """A name may stand for other values in another sweep."""
    store = f"sqlite:///{toy.root}/mlflow.db"
    code, output = toy.call("-c", RUNS_OF_POINTS, MLFLOW_TRACKING_URI=store)
    assert code == 0, output
    first, other, again = [line for line in output.splitlines() if line.startswith("run ")]
    assert first == again != other


class TestRuns:
    pytestmark = needs_prefect

    def test_shared_stages_run_once_and_points_are_experiments(self, done_toy):
        toy = done_toy
        settings = ("-S", "merge.rate=0.5,1.0", "-S", "download.lines=3,4")
        arguments = ("sweep", *settings, "--over", "download.lines", "evaluation")
        code, output = toy.flows(*arguments)
        assert code == 0, output
        # (0.5, 3) is the workspace's; merge.rate touches merge and evaluation only.
        assert "4 points, 20 stage runs: 14 distinct, of these 5 cached and 9 to run" in output
        assert ran(toy) == ["cut 0", "cut 1", "download", *["evaluation"] * 3, *["merge"] * 3]
        assert "4 of 4 points done" in output
        assert "9 executed" in output
        assert "11 restored" in output
        table = " ".join(output.split())
        assert "merge.rate points bbox segm 0.5 2 22.0 ± 2.8 22.0 ± 2.8 1.0 2 44.0 ± 5.7" in table
        assert f"Best: merge.rate = 1.0, with {AP50} 44.0 ± 5.7" in output
        results = toy.root / ".sweeps/results/merge.rate+download.lines"
        assert {path.name for path in results.iterdir()} == {
            "results.json",
            "table.txt",
        }
        assert toy.git("status", "--porcelain") == "?? dvc.lock\n"

        one, other = "merge.rate=0.5,download.lines=3", "merge.rate=1.0,download.lines=4"
        shown = json.loads(toy.dvc("metrics", "diff", "--json", one, other))
        (metrics,) = shown.values()
        changes = {key: (value["old"], value["new"]) for key, value in metrics.items()}
        assert changes["detector.generalized.novel.segm.AP50"] == (20.0, 48.0)
        saved = toy.dvc("exp", "list", "--name-only").split()
        assert len(saved) == 4 and {one, other} <= set(saved)

        runs, (parent,) = read_runs(toy.root), parents(toy.root)
        children = [run for run in runs if run.tags.get("mlflow.parentRunId") == parent]
        assert (len(runs), len(children)) == (5, 4)
        assert {run.status for run in runs} == {"FINISHED"}
        assert {run.tags["mlflow.runName"] for run in children} == set(saved)
        by_name = {run.tags["mlflow.runName"]: run for run in children}
        assert by_name[other].metrics[AP50] == 48.0
        assert by_name[one].outcomes()["merge"] == "restored"

        # Again: nothing runs, nothing is recorded twice, the answer is the same.
        code, output = toy.flows(*arguments)
        assert code == 0, output
        assert ran(toy) == []
        assert "of these 14 cached and 0 to run" in output
        assert "20 unchanged" in output
        assert f"Best: merge.rate = 1.0, with {AP50} 44.0 ± 5.7" in output
        assert len(read_runs(toy.root)) == 5

    def test_killed_sweep_goes_on_and_a_failing_point_stops_no_other(self, toy):
        # Not committed: the worktrees have it all the same.
        hold = toy.mark("hold.here")
        held = f'P["merge"]["rate"] == 0.5 and Path("{hold}").exists()'
        waiting = f'while {held}: time.sleep(0.05)\nprint("working"'
        toy.replace('print("working"', waiting, "stages/merge/__main__.py")
        arguments = ("sweep", "-S", "merge.rate=oops,0.5", "evaluation")
        process = toy.start("-m", "flows", *arguments)
        good = toy.root / ".sweeps/points/merge.rate=0.5/runs.log"
        wait_until(lambda: good.exists() and "merge" in good.read_text())
        points = "merge.rate=oops", "merge.rate=0.5"

        def ways_of_download() -> list[str]:
            return sorted(str(tags_of(p, toy.root).get("dvc.outcome.download")) for p in points)

        # Either point may come first; the other takes its result.
        wait_until(lambda: ways_of_download() == ["executed", "restored"])
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate()
        kill_all(children)
        hold.unlink()
        before = ran(toy)
        assert [name for name in before if name != "merge"] == ["cut 0", "cut 1", "download"]

        code, output = toy.flows(*arguments)
        assert code == 1, output
        assert ran(toy) == ["evaluation", "merge", "merge"]
        assert "merge.rate=oops: merge failed" in output
        assert "1 of 2 points done" in output
        assert toy.dvc("exp", "list", "--name-only").split() == ["merge.rate=0.5"]
        statuses = {run.tags["mlflow.runName"]: run.status for run in read_runs(toy.root)}
        assert statuses["merge.rate=0.5"] == "FINISHED"
        assert statuses["merge.rate=oops"] == statuses["merge.rate"] == "FAILED"
        # From before it was killed:
        assert sum("made.download" in tags_of(point, toy.root) for point in points) == 1
