"""The contract of flows/dvc/remote.py with DVC: what it says must be what `dvc repro` then does."""

import pytest

from flows.dvc.remote import (
    RemoteError,
    check_remote,
    fetch_result,
    pull_inputs,
    push_result,
    result_key,
    with_patience,
)
from flows.graph import DagError
from tests.support.fleet import clone_of, make_fleet, store


def test_one_result_is_pushed_fetched_and_then_restored_by_dvc(done_toy):
    make_fleet(done_toy, 0)
    assert check_remote(done_toy.root) == str(store(done_toy))
    push_result(done_toy.root, "download")
    entries = list(store(done_toy).glob("runs/*/*/*"))
    assert len(entries) == 1

    other = clone_of(done_toy, "other")
    assert result_key(other.root, "download") == result_key(done_toy.root, "download")
    assert fetch_result(other.root, "download")
    assert "is cached - skipping run" in other.dvc("repro", "-s", "download")
    assert fetch_result(other.root, "download")  # up to date now
    assert not fetch_result(other.root, "cut@0")
    with pytest.raises(DagError, match=r"merge: its input data/cut is missing"):
        result_key(other.root, "merge")


def test_an_entry_without_its_data_is_no_result(done_toy):
    make_fleet(done_toy, 0)
    push_result(done_toy.root, "download")
    for path in store(done_toy).glob("files/md5/*/*"):
        path.unlink()
    assert not fetch_result(clone_of(done_toy, "other").root, "download")


def test_inputs_are_pulled_file_by_file(done_toy):
    make_fleet(done_toy, 0)
    for name in ("download", "cut@0"):
        push_result(done_toy.root, name, as_input=True)
    other = clone_of(done_toy, "other")
    (other.root / "dvc.lock").write_text(done_toy.lock())
    pull_inputs(other.root, ["data/download/parts/a.txt", "data/cut/0.txt"])
    assert (other.root / "data/cut/0.txt").is_file()
    assert [path.name for path in (other.root / "data/download/parts").iterdir()] == ["a.txt"]
    with pytest.raises(RemoteError, match="store"):
        pull_inputs(other.root, ["data/cut/1.txt"])


def test_a_missing_remote_or_folder_is_told_with_what_to_do(done_toy):
    with pytest.raises(DagError, match=r"no DVC remote.*`dvc remote add --default"):
        check_remote(done_toy.root)
    make_fleet(done_toy, 0)
    store(done_toy).rmdir()
    with pytest.raises(RemoteError, match=r"there is no folder .*store; mount or make it"):
        check_remote(done_toy.root)


def test_patience_ends_and_only_remotes_are_waited_for(monkeypatch):
    monkeypatch.setenv("OVIS_PATIENCE", "3")
    failures, told = [RemoteError("away")], []

    def action():
        if failures:
            raise failures.pop()
        return "back"

    assert with_patience(action, told.append) == "back"
    assert told == ["away; trying again in 1 s"]
    monkeypatch.setenv("OVIS_PATIENCE", "0")
    failures.append(RemoteError("away"))
    with pytest.raises(RemoteError):
        with_patience(action, told.append)
    failures.append(ValueError("another"))
    with pytest.raises(ValueError, match="another"):
        with_patience(action, told.append)
