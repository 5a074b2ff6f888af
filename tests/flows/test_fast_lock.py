"""Entry by entry, dvc.lock gets the bytes that DVC itself would write."""

from collections.abc import Callable

import pytest
from dvc.dvcfile import Lockfile
from dvc.repo import Repo
from ruamel.yaml import YAML

from flows import fast_lock
from flows.lock_text import HEAD, LockText, sort_entries

ENTRY = "  first:\n    cmd: a\n"
LONG = "python -m stages side --words " + "of-a-command-that-yaml-breaks-into-lines " * 5


@pytest.mark.parametrize(
    ("names", "missing", "command"),
    [
        (["download"], "", ""),
        (["download"], "", LONG),
        (["cut@1", "evaluation"], "cut@1", LONG),
        (["side"], "side", "echo 'ä: #b'"),
        (["side", "merge"], "merge", "echo\nb"),
    ],
)
def test_the_bytes_are_those_of_dvc(done_toy, names, missing, command):
    path = done_toy.root / "dvc.lock"
    text = LockText.read(path)
    LockText({name: entry for name, entry in text.entries.items() if name != missing}).write(path)
    before = path.read_bytes()

    def record(dump: Callable) -> str:
        path.write_bytes(before)
        with Repo(str(done_toy.root)) as repo:
            stages = [stage for stage in repo.index.stages if stage.name in names]
            for stage in stages:
                stage.cmd = command or stage.cmd
            dump(Lockfile(repo, str(path)), stages)
        return path.read_text(encoding="utf-8")

    assert record(fast_lock._dump) == record(fast_lock._dump_whole)
    assert sorted(p.name for p in done_toy.root.glob("dvc.lock*")) == ["dvc.lock"]


def test_entries_are_parsed_as_dvc_does(done_toy):
    with Repo(str(done_toy.root)) as repo:
        lock = Lockfile(repo, str(done_toy.root / "dvc.lock"))
        recorded, whole = fast_lock._load(lock)[0], fast_lock._load_whole(lock)[0]
    assert recorded.keys() == whole.keys()
    assert dict(recorded["stages"]) == whole["stages"]
    assert recorded["stages"].get("none", {}) == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "schema: '2.0'\nstages: {}\n",
        HEAD + "<<<<<<< HEAD\n" + ENTRY,
        HEAD + ENTRY + "datasets: []\n",
        HEAD + "  # by hand\n" + ENTRY,
        HEAD + "  'first':\n    cmd: a\n",
        HEAD + "  first: {cmd: a}\n",
        HEAD + "  first:\n    cmd: 'a\n\n      b'\n",
        HEAD + ENTRY.rstrip("\n"),
    ],
)
def test_another_form_is_left_alone(tmp_path, text):
    assert LockText.split(text) is None
    path = tmp_path / "dvc.lock"
    path.write_text(text)
    sort_entries(path, ["second", "first"])
    assert path.read_text() == text


def test_another_form_is_written_by_dvc(done_toy):
    path = done_toy.root / "dvc.lock"
    text = path.read_text()
    path.write_text(text.replace("\n  merge:\n", "\n  # by hand\n  merge:\n"))
    with Repo(str(done_toy.root)) as repo:
        lock = Lockfile(repo, str(path))
        assert fast_lock._load(lock)[0]["stages"]["merge"]["cmd"] == "python -m stages merge"
        fast_lock._dump(lock, [stage for stage in repo.index.stages if stage.name == "side"])
    assert "# by hand" in path.read_text()
    assert YAML(typ="safe").load(path) == YAML(typ="safe").load(text)


def test_this_repositorys_lock_has_the_known_form(repository):
    text = (repository / "dvc.lock").read_text(encoding="utf-8")
    assert str(LockText.split(text)) == text


def test_entries_are_sorted(tmp_path):
    path = tmp_path / "dvc.lock"
    LockText({name: ENTRY.replace("first", name) for name in "dcba"}).write(path)
    sort_entries(path, ["a", "none", "c"])
    assert list(LockText.read(path).entries) == ["a", "c", "d", "b"]
