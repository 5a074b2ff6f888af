"""A worker's cache and resume points are freed without losing anything."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.dvc import records
from flows.dvc.remote import RemoteError
from flows.dvc.resume import ResumePoint
from flows.graph import DagError
from flows.workers import stage_flow
from flows.workers.space import free_space, require_space
from flows.workers.workspace import FOLDER, checkout, link_resume, pause_pulls, write_records
from tests.support.fleet import make_fleet, request_for, run_on, store


@pytest.fixture(autouse=True)
def here(toy, monkeypatch):
    monkeypatch.setenv("TOY_FOLDER", str(toy.root))
    monkeypatch.setenv("OVIS_PATIENCE", "0")
    monkeypatch.setattr(records, "SECONDS_OF_YOUTH", 0)


def texts(clone: Path) -> list[str]:
    """Return the cached files that are no lists of a folder's files."""
    found = [path for path in clone.glob(".dvc/cache/files/md5/??/*") if path.suffix != ".dir"]
    return sorted(path.read_text() for path in found)


def test_what_is_not_on_the_remote_stays_and_is_pushed_when_asked_for_again(toy, monkeypatch):
    """`dvc gc --workspace` deleted it, and the stage ran twice."""
    fleet = make_fleet(toy)
    clone = fleet.clones[0]
    failures = [RemoteError("the network is down")]
    push = stage_flow.push_result

    def fail_once(root, name):
        if failures:
            raise failures.pop()
        push(root, name)

    monkeypatch.setattr(stage_flow, "push_result", fail_once)

    def upset(request, attempt):
        if attempt:
            assert texts(clone) == ["a\na\na\n", "b\nb\nb\n"]
            assert "freed 0 MiB" in free_space(clone, float("inf"))
            assert texts(clone) == ["a\na\na\n", "b\nb\nb\n"]

    fleet.upset = upset
    assert run_on(fleet, toy, "download") == {"download": "restored"}
    assert toy.ran() == ["download"]
    free_space(clone, float("inf"))
    assert texts(clone) == []  # now the remote has it
    assert run_on(fleet, toy, "cut@0") == {"cut@0": "executed"}


def test_what_the_remote_has_only_in_part_stays(toy):
    fleet = make_fleet(toy)
    run_on(fleet, toy, "download")
    for path in store(toy).glob("files/md5/??/*"):
        path.chmod(0o644)
        path.write_text("a")
    free_space(fleet.clones[0], float("inf"))
    assert texts(fleet.clones[0]) == ["a\na\na\n", "b\nb\nb\n"]


def test_what_a_workspace_records_or_the_clone_has_stays(toy):
    fleet = make_fleet(toy)
    run_on(fleet, toy, "download")
    clone, request = fleet.clones[0], request_for(toy, "cut@0")
    with checkout(clone, request, "running") as folder:
        write_records(folder, request)
        free_space(clone, float("inf"))
        assert len(texts(clone)) == 2
    toy.dvc("pull", "download")
    shutil.copy(toy.root / "dvc.lock", clone)
    shutil.copytree(toy.root / "data", clone / "data")
    free_space(clone, float("inf"))
    assert len(texts(clone)) == 2
    shutil.rmtree(clone / "data")
    free_space(clone, float("inf"))
    assert texts(clone) == []


def test_what_is_young_stays_and_the_oldest_goes_first(toy, monkeypatch):
    fleet = make_fleet(toy)
    clone = fleet.clones[0]
    run_on(fleet, toy, "download")
    monkeypatch.setattr(records, "SECONDS_OF_YOUTH", 3600)
    free_space(clone, float("inf"))
    assert len(texts(clone)) == 2
    monkeypatch.setattr(records, "SECONDS_OF_YOUTH", 0)
    for path in clone.glob(".dvc/cache/files/md5/??/*"):
        later = path.stat().st_ctime + (500 if path.read_text().startswith("a") else 900)
        os.utime(path, (later, later))
        if path.suffix == ".dir":
            os.utime(path, (later + 900, later + 900))
    free_space(clone, 1)
    assert texts(clone) == ["b\nb\nb\n"]


KEY = "0" * 64


def train(clone: Path, text: str, key: str = KEY, push: bool = True) -> Path:
    """Go on with the training of `key` in the clone; return its newest state."""
    point = ResumePoint(clone, clone / ".resume" / key, key)
    point.pull(print)
    state = clone / ".resume" / key / "abc/state.txt"
    state.parent.mkdir(exist_ok=True)
    state.unlink(missing_ok=True)
    state.write_text(text)
    if push:
        point.push(print)
    return state


def test_a_resume_point_goes_once_the_remote_has_it_or_a_newer_one(toy):
    one, two = make_fleet(toy, 2).clones
    older, newer = train(one, "step 1"), train(two, "2" * 2**20)
    train(one, "step 1 and a bit", "1" * 64)
    train(two, "step 2 here", "1" * 64, push=False)
    assert "and 0 MiB of resume points" in free_space(one, float("inf"))
    assert "and 1 MiB of resume points" in free_space(two, float("inf"))
    assert not older.exists()
    assert not newer.exists()
    assert [path.name for path in (two / ".resume").iterdir()] == ["1" * 64]


def test_a_resume_point_goes_once_its_result_is_on_the_remote(toy):
    fleet = make_fleet(toy, 2)
    two = fleet.clones[1]
    key = request_for(toy, "download").key
    state = train(two, "step 1", key)
    free_space(two, 0)  # nothing is wanted
    assert state.exists()
    train(two, "step 2", key, push=False)
    free_space(two, float("inf"))
    assert state.exists()
    assert run_on(fleet, toy, "download") == {"download": "executed"}  # by the other
    free_space(two, float("inf"))
    assert not state.exists()


def test_a_resume_point_that_nobody_else_has_stays(toy):
    clone = make_fleet(toy).clones[0]
    ahead = train(clone, "step 1")
    ahead.write_text("step 2")
    own = train(clone, "step 1", "1" * 64, push=False)
    deleted = train(clone, "step 1", "2" * 64)
    shutil.rmtree(store(toy) / "resume" / ("2" * 64))
    damaged = train(clone, "step 1", "3" * 64)
    (blob,) = {*(store(toy) / "resume" / ("3" * 64)).glob("[!i]*")}
    blob.write_text("step")
    local = clone / ".resume" / ("a" * 32) / "state.txt"  # of a training in the clone itself
    local.parent.mkdir()
    local.touch()
    free_space(clone, float("inf"))
    assert all(path.is_file() for path in (ahead, own, deleted, damaged, local))


def test_a_resume_point_in_use_stays_and_that_of_a_killed_stage_goes(toy):
    clone, request = make_fleet(toy).clones[0], request_for(toy, "download")
    used, left = train(clone, "step 1", request.key), train(clone, "step 1")
    dead = clone / FOLDER / "dead"
    dead.mkdir(parents=True)
    dead.with_suffix(".lock").touch()
    link_resume(clone, dead, KEY)
    with checkout(clone, request, "alive") as folder:
        link_resume(clone, folder, request.key)
        free_space(clone, float("inf"))
    assert used.exists()
    assert not left.exists()


def test_no_resume_point_comes_into_use_while_space_is_freed(toy, tmp_path):
    clone = make_fleet(toy).clones[0]
    linking = threading.Thread(target=link_resume, args=[clone, tmp_path, KEY])
    with pause_pulls(clone):
        linking.start()
        linking.join(0.3)
        assert linking.is_alive()
    linking.join()
    assert (tmp_path / ".resume").is_symlink()


def test_a_resume_point_that_is_half_deleted_is_fetched_again(toy, monkeypatch):
    clone = make_fleet(toy).clones[0]
    state = train(clone, "step 1")

    def end(path, **more):
        state.unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", end)
        free_space(clone, float("inf"))
    ResumePoint(clone, clone / ".resume" / KEY, KEY).pull(print)
    assert state.read_text() == "step 1"


def test_a_disk_that_runs_low_is_freed_before_a_stage_starts(toy, monkeypatch):
    fleet = make_fleet(toy)
    run_on(fleet, toy, "download")
    usage = SimpleNamespace(free=150 * 2**20, total=2**40)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    told: list[str] = []
    require_space(fleet.clones[0], told.append)
    assert texts(fleet.clones[0]) == []
    assert "which the remote has too" in told[0]
    store(toy).rename(store(toy).with_name("away"))
    require_space(fleet.clones[0], told.append)
    assert "its cache cannot be freed: DVC remote" in told[1]


def test_a_cache_that_others_may_use_is_not_touched(toy, tmp_path):
    fleet = make_fleet(toy)
    clone = fleet.clones[0]
    command = [sys.executable, "-m", "dvc", "cache", "dir", "--local", str(tmp_path / "shared")]
    subprocess.run(command, cwd=clone, check=True, capture_output=True)
    with pytest.raises(DagError, match="may be in use by other clones"):
        free_space(clone, float("inf"))


def test_the_command_tells_what_it_freed(toy):
    clone = make_fleet(toy).clones[0]
    command = [sys.executable, "-m", "flows.workers.space"]
    done = subprocess.run(
        command, cwd=clone, env=toy.environment(), check=True, capture_output=True, text=True
    )
    assert done.stdout == (
        "freed 0 MiB of the cache, which the remote has too,"
        " and 0 MiB of resume points that are of no more use here\n"
    )
