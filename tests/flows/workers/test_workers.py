"""Coordinator and workers on the toy project, with clones in this process in place of workers.

The same faults with real processes are in test_fleet.py, behind the marker `workers`.
"""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.dvc.plan import make_plan
from flows.dvc.project import load_graph
from flows.dvc.remote import RemoteError, elsewhere, push_result
from flows.graph import Status
from flows.stage import StageFailedError
from flows.workers.coordinator import Fleet
from flows.workers.space import UnfitError
from flows.workers.stage_flow import reproduce
from flows.workers.workspace import FOLDER, checkout, remove_leftovers
from tests.support.fleet import clone_of, make_fleet, request_for, run_on, store
from tests.support.toy import Toy

ALL = ["cut 0", "cut 1", "download", "evaluation", "merge", "side"]


@pytest.fixture(autouse=True)
def here(toy, monkeypatch):
    """Stages that workers run report to the toy, and a remote that is away is given up at once."""
    monkeypatch.setenv("TOY_FOLDER", str(toy.root))
    monkeypatch.setenv("OVIS_PATIENCE", "0")


def test_workers_give_the_bytes_of_a_local_run_and_nothing_is_made_twice(toy, done):
    workers = make_fleet(toy, 2)
    assert set(run_on(workers, toy).values()) == {"executed"}
    assert toy.lock() == done.lock()
    assert toy.ran() == ALL
    assert not any((clone / FOLDER / "run-1").exists() for clone in workers.clones)
    # Another clone, without any record, needs no worker: all of it is on the remote.
    other = clone_of(toy, "other")
    assert set(run_on(make_nobody(workers), other).values()) == {"restored"}
    assert other.lock() == done.lock()
    assert toy.ran() == []


SHOWN = ["data/evaluation/metrics.json", "data/evaluation/montage.png", "data/merge/curve.csv"]


def files_of(toy: Toy) -> list[str]:
    paths = (path for path in (toy.root / "data").rglob("*") if path.is_file())
    return sorted(path.relative_to(toy.root).as_posix() for path in paths)


def test_only_what_is_shown_comes_here_and_plain_dvc_brings_the_rest(toy):
    workers = make_fleet(toy, 2)
    run_on(workers, toy)
    assert files_of(toy) == SHOWN
    assert run_on(make_nobody(workers), toy) == {}  # nothing to do
    code, output = toy.flows("plan", "--pools")
    assert (code, output.splitlines()[-1]) == (0, "6 stages and shards: 6 up to date")
    code, output = toy.flows("verify")
    assert (code, output.count(" is missing; `dvc pull` fetches it\n")) == (1, 5), output
    # Keys downstream come from what is recorded, not from files.
    toy.replace("rate: 0.5", "rate: 1.0")
    assert run_on(workers, toy) == {"merge": "executed", "evaluation": "executed"}
    assert files_of(toy) == SHOWN
    cached = list((toy.root / ".dvc/cache/files/md5").glob("*/*"))
    assert len(cached) == 5  # two metrics, one curve, one montage, and the list of download's files
    toy.ran()
    toy.dvc("pull")
    assert "up to date" in toy.dvc("status")
    assert toy.flows("verify") == (0, "dvc.lock: 8 outputs, all as it says\n")
    before = toy.lock()
    toy.dvc("repro")
    assert (toy.ran(), toy.lock()) == ([], before)


def test_what_is_here_of_an_older_result_does_not_stay(toy):
    toy.dvc("repro")
    workers = make_fleet(toy)
    assert run_on(make_nobody(workers), toy) == {}
    toy.replace("by: 1", "by: 2")
    assert run_on(workers, toy, "cut@0") == {"cut@0": "executed"}
    assert not (toy.root / "data/cut/0.txt").exists()
    assert (toy.root / "data/cut/1.txt").exists()
    toy.replace("by: 2", "by: 1")  # the cache has the result
    assert run_on(make_nobody(workers), toy) == {"cut@0": "restored"}
    assert "up to date" in toy.dvc("status")


def test_a_fresh_clone_takes_what_plain_dvc_pushed(toy):
    make_fleet(toy, 0)
    toy.dvc("repro")
    toy.dvc("push")  # without the run cache
    toy.git("add", "dvc.lock")
    toy.git("commit", "-qm", "results")
    other = clone_of(toy, "other")
    steps = make_plan(other.root, None, elsewhere(other.root, True))
    plan = {step.stage.name: step.status for step in steps}
    due = {name for name, status in plan.items() if status is not Status.UP_TO_DATE}
    assert due == {"merge", "evaluation"}  # of which something is shown
    assert {plan[name] for name in due} == {Status.RESTORABLE}
    assert run_on(make_nobody(make_fleet(toy, 0)), other) == dict.fromkeys(due, "restored")
    assert (files_of(other), other.lock()) == (SHOWN, toy.lock())


def test_a_result_that_left_the_remote_is_made_again(toy):
    workers = make_fleet(toy)
    run_on(workers, toy, "cut@0")
    clone = workers.clones[0]
    for path in [*store(toy).glob("files/md5/*/*"), *clone.glob(".dvc/cache/files/md5/*/*")]:
        path.unlink()
    assert run_on(workers, toy, "cut@0") == {"download": "executed", "cut@0": "executed"}


def make_nobody(workers):
    """Return a dispatcher that must not be asked."""

    def refuse(request, attempt):
        raise AssertionError(f"{request.stage} was asked for")

    return type(workers)([], upset=refuse)


def test_only_the_part_of_a_folder_that_a_stage_reads_is_fetched(toy):
    workers = make_fleet(toy, 2)
    run_on(workers, toy, "cut@0")  # download on the first worker, cut@0 on the second
    texts = [path.read_text() for path in workers.clones[1].glob(".dvc/cache/files/md5/*/*")]
    assert "a\na\na\n" in texts
    assert "b\nb\nb\n" not in texts


def test_a_worker_at_another_commit_works_at_the_coordinators(toy):
    workers = make_fleet(toy)
    (workers.clones[0] / "stages/download/__main__.py").write_text("raise SystemExit('edited')")
    toy.replace('"a\\n"', '"A\\n"', "stages/download/__main__.py")
    toy.git("commit", "-qam", "capitals")
    run_on(workers, toy, "download")
    toy.dvc("pull", "download")
    assert (toy.root / "data/download/parts/a.txt").read_text() == "A\nA\nA\n"


def test_params_need_not_be_committed(toy):
    workers = make_fleet(toy)
    toy.replace("lines: 3", "lines: 1")
    run_on(workers, toy, "download")
    toy.dvc("pull", "download")
    assert (toy.root / "data/download/parts/a.txt").read_text() == "a\n"


def test_a_commit_that_workers_cannot_get_is_told(toy):
    workers = make_fleet(toy)
    hidden = toy.root.parent / "elsewhere"
    subprocess.run(["git", "clone", "-q", "--bare", str(toy.root), str(hidden)], check=True)
    subprocess.run(
        ["git", "remote", "set-url", "origin", str(hidden)], cwd=workers.clones[0], check=True
    )
    toy.replace("3.5,1", "3.6,1", "stages/merge/__main__.py")
    toy.git("commit", "-qam", "not pushed")
    with pytest.raises(StageFailedError, match=r"is on no branch of .*worker0's origin; push it"):
        run_on(workers, toy, "download")
    assert (toy.ran(), workers.left) == ([], [])


def refuse(clone, request, match: str) -> None:
    with pytest.raises(StageFailedError, match=f"refused: {match}"):
        reproduce(clone, request, "run-1", print)


def test_a_commit_that_origin_serves_but_has_on_no_branch_is_refused(toy):
    """As on a server that serves the commits of forks and pull requests by their names."""
    clone = make_fleet(toy).clones[0]
    request = request_for(toy, "download")
    toy.replace("3.5,1", "3.6,1", "stages/merge/__main__.py")
    toy.git("commit", "-qam", "of a fork")
    fork = toy.git("rev-parse", "HEAD").strip()
    toy.git("update-ref", "refs/pull/1/head", fork)
    toy.git("reset", "-q", "--hard", "HEAD^")
    subprocess.run(["git", "fetch", "-q", "origin", fork], cwd=clone, check=True)
    refuse(clone, replace(request, commit=fork), "commit [0-9a-f]{12} is on no branch of")


@pytest.mark.parametrize(
    "commit",
    ["main", "HEAD", "0" * 39, "0" * 40 + "\n", "--upload-pack=touch PWNED; git-upload-pack"],
)
def test_what_is_no_whole_name_of_a_commit_never_reaches_git(toy, commit):
    clone = make_fleet(toy).clones[0]
    request = replace(request_for(toy, "download"), commit=commit)
    refuse(clone, request, "commit .* is not 40 hexadecimal digits")
    assert not list(toy.root.parent.rglob("PWNED"))


@pytest.mark.parametrize("key", ["", "../../x", "0" * 63])
def test_a_key_that_is_no_hash_becomes_no_folder(toy, key):
    clone = make_fleet(toy).clones[0]
    refuse(clone, replace(request_for(toy, "download"), key=key), "key .* is not 64 hexadecimal")
    assert not (clone / ".resume").exists()


def test_a_pool_of_devices_does_not_compute_on_cores_unless_told(toy, monkeypatch):
    toy.replace("meta: {cores: 1}", "meta: {cores: 1, pool: gpu, gpus: 1}", "dvc.yaml")
    toy.git("commit", "-qam", "gpu")
    fleet = make_fleet(toy)
    run_on(fleet, toy, "download")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(StageFailedError, match="1 CUDA devices are wanted and this machine has 0"):
        run_on(fleet, toy, "cut@0")
    assert toy.ran() == ["download"]
    fleet = make_fleet(toy)
    monkeypatch.setenv("OVIS_FEWER_GPUS", "1")
    assert run_on(fleet, toy, "cut@0") == {"cut@0": "executed"}


@pytest.mark.parametrize("stage", ["--all-pipelines", "downlo", "download/../cut@0"])
def test_a_stage_that_the_commit_does_not_have_is_refused(toy, stage):
    clone = make_fleet(toy).clones[0]
    refuse(clone, replace(request_for(toy, "download"), stage=stage), "there is no stage")
    assert toy.ran() == []


def test_records_other_than_those_upstream_are_refused_and_written_nowhere(toy):
    workers = make_fleet(toy)
    assert run_on(workers, toy, "download") == {"download": "executed"}
    clone = workers.clones[0]
    request = request_for(toy, "cut@0")
    record = request.records["dvc.lock"]["download"]
    outside = toy.root.parent / "outside.yaml"
    for path in (str(outside), "../../../../outside.yaml", "stages/dvc.lock", "dvc.yaml"):
        more = {**request.records, path: {"download": record}}
        refuse(clone, replace(request, records=more), "it has records of")
    refuse(clone, replace(request, records={"dvc.lock": {"merge": record}}), "it has records of")
    hashed = {"path": "data/download/parts", "md5": "ab/../../../outside"}
    records = {"dvc.lock": {"download": {"cmd": "true", "outs": [hashed]}}}
    refuse(clone, replace(request, records=records), "the record of .* has no MD5 hash")
    assert not outside.exists()
    assert toy.ran() == ["download"]


def test_a_failing_shard_is_not_tried_again_and_the_others_are_kept(toy):
    workers = make_fleet(toy)
    run_on(workers, toy, "cut@0")
    toy.mark("fail.cut")
    with pytest.raises(StageFailedError, match=r"cut@1 failed(.|\n)*the disk is on fire"):
        run_on(workers, toy, "cut@1")
    assert workers.asked == ["download", "cut@0", "cut@1"]
    (toy.root / "fail.cut").unlink()
    assert run_on(workers, toy, "cut") == {"cut@1": "executed"}


def test_a_full_disk_sends_the_stage_elsewhere(toy):
    workers = make_fleet(toy, 2)
    full = toy.mark("fail.download", "OSError: [Errno 28] No space left on device")

    def upset(request, attempt):
        if attempt:
            full.unlink()

    workers.upset = upset
    assert run_on(workers, toy, "download") == {"download": "executed"}
    assert workers.asked == ["download", "download"]
    assert [told.partition(":")[0] for told in workers.left] == ["worker0"]


def test_a_worker_without_room_refuses_before_it_starts(toy, monkeypatch):
    workers = make_fleet(toy)
    full = SimpleNamespace(free=2**20, total=2**40)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(StageFailedError, match="given up after 3 attempts") as caught:
        run_on(workers, toy, "download")
    assert "worker0: No space left on device: 1 MiB; make room there" in str(caught.value)
    assert toy.ran() == []


def test_another_environment_is_refused_and_the_stage_goes_elsewhere(toy, monkeypatch):
    workers = make_fleet(toy, 2)
    same, other = {"python": "3.11", "torch": "2.9"}, {"python": "3.11", "torch": "2.8"}
    monkeypatch.setattr("flows.workers.request.versions_here", lambda root: same)
    monkeypatch.setattr(
        "flows.workers.stage_flow.versions_here",
        lambda root: other if "worker0" in root.parts else same,
    )
    assert run_on(workers, toy, "download") == {"download": "executed"}
    assert toy.ran() == ["download"]
    assert [clone.name for clone in workers.clones] == ["worker1"]  # the other left the pool
    assert "torch 2.8 (coordinator: 2.9); install the lock of the same commit" in workers.left[0]


def test_unfit_workers_use_up_no_attempt(toy, monkeypatch):
    """However many there are, the one fit worker gets the stage."""
    workers = make_fleet(toy, 5)
    fit = workers.clones[-1]
    monkeypatch.setattr("flows.workers.stage_flow.require_space", full_but(fit))
    assert run_on(workers, toy, "download") == {"download": "executed"}
    assert workers.clones == [fit]
    assert len(workers.left) == 4


def full_but(fit):
    def require_space(clone, log):
        if clone != fit:
            raise UnfitError(f"{clone}: No space left on device")

    return require_space


def test_inputs_that_change_under_the_coordinator_make_no_wrong_result(toy):
    workers = make_fleet(toy)
    assert run_on(workers, toy, "download") == {"download": "executed"}
    fleet = Fleet(toy.root, workers)
    toy.replace("by: 1", "by: 2")
    with pytest.raises(StageFailedError, match="did it change since it was started"):
        fleet.run(load_graph(toy.root)["cut@0"], 0, workers.logged.append)
    assert toy.ran() == ["download"]


def test_what_changes_here_while_a_worker_makes_a_stage_is_not_recorded_with_it(toy):
    workers = make_fleet(toy)
    run_on(workers, toy, "download")
    before = toy.lock()
    workers.upset = lambda request, attempt: toy.replace("by: 1", "by: 2")
    with pytest.raises(StageFailedError, match="cut@0 is not recorded, because its command, par"):
        run_on(workers, toy, "cut@0")
    assert (workers.asked, toy.ran()) == (["download", "cut@0"], ["cut 0", "download"])
    assert toy.lock() == before
    toy.replace("by: 2", "by: 1")
    assert run_on(make_nobody(workers), toy, "cut@0") == {"cut@0": "restored"}


def test_a_remote_that_goes_away_is_told_and_not_made_anew(toy):
    workers = make_fleet(toy)
    away = store(toy).with_name("away")

    def unplug(request, attempt):
        if store(toy).exists():
            store(toy).rename(away)

    workers.upset = unplug
    with pytest.raises(StageFailedError) as caught:
        run_on(workers, toy, "download")
    assert f"there is no folder {store(toy)}; mount or make it" in str(caught.value)
    assert not store(toy).exists()  # DVC would have made an empty one
    assert toy.ran() == []


def test_a_remote_that_comes_back_is_waited_for(toy, monkeypatch):
    monkeypatch.setenv("OVIS_PATIENCE", "60")
    workers = make_fleet(toy)
    away = store(toy).with_name("away")

    class Log(list):
        def append(self, line):
            super().append(line)
            if "mount or make it; trying again" in line:
                away.rename(store(toy))

    workers.upset, workers.logged = lambda request, attempt: store(toy).rename(away), Log()
    assert run_on(workers, toy, "download") == {"download": "executed"}
    assert workers.asked == ["download"]
    assert sum("trying again" in line for line in workers.logged) == 1


def test_a_missing_remote_is_told_before_anything_starts(toy):
    make_fleet(toy, 0)
    store(toy).rmdir()
    nobody = {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
    code, output = toy.call("-m", "flows", "run", "--pools", **nobody)
    assert (code, output.strip()) == (
        1,
        f"ovis-dag: DVC remote {store(toy)}: there is no folder {store(toy)}; mount or make it",
    )


def test_a_result_that_could_not_be_pushed_is_not_made_again(toy, monkeypatch):
    workers = make_fleet(toy)
    failures = [RemoteError("the network is down")]

    def push(root, name):
        if failures:
            raise failures.pop()
        push_result(root, name)

    monkeypatch.setattr("flows.workers.stage_flow.push_result", push)
    assert run_on(workers, toy, "download") == {"download": "restored"}
    assert workers.asked == ["download", "download"]
    assert toy.ran() == ["download"]


def test_workers_of_another_remote_are_found_out(toy):
    workers = make_fleet(toy)
    other = store(toy).with_name("other")
    other.mkdir()
    set_remote(workers.clones[0], toy, other)
    with pytest.raises(StageFailedError, match="do all machines use one remote"):
        run_on(workers, toy, "download")


def set_remote(clone: Path, toy: Toy, folder: Path) -> None:
    settings = clone / ".dvc/config.local"
    settings.write_text(settings.read_text().replace(str(store(toy)), str(folder)))


@pytest.mark.parametrize("away", ["origin", "remote"])
def test_a_worker_that_cannot_use_the_remote_or_its_origin_leaves(toy, away):
    workers = make_fleet(toy, 2)
    first, second = workers.clones
    missing = toy.root.parent / "missing"
    if away == "remote":
        set_remote(first, toy, missing)
    else:
        toy.git("-C", str(first), "remote", "set-url", "origin", str(missing))
        toy.git("commit", "-q", "--allow-empty", "-m", "not in the clones yet")
    assert run_on(workers, toy, "download") == {"download": "executed"}
    assert (workers.clones, workers.asked) == ([second], ["download", "download"])
    (left,) = workers.left
    assert left.startswith("worker0: ") and str(missing) in left
    assert not any("attempt" in line for line in workers.logged)
    assert toy.ran() == ["download"]


def test_workspaces_of_killed_stages_are_removed_and_others_not(toy):
    clone = make_fleet(toy).clones[0]
    with checkout(clone, request_for(toy, "download"), "alive") as folder:
        (clone / FOLDER / "dead").mkdir()
        (clone / FOLDER / "dead.lock").touch()
        remove_leftovers(clone)
        assert folder.is_dir()
        assert not (clone / FOLDER / "dead").exists()
    assert not folder.exists()
