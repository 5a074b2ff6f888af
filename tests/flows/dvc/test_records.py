"""What changed while a stage ran is never recorded, and what is recorded can be verified."""

import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.dvc.plan import make_plan
from flows.dvc.project import load_graph
from flows.dvc.records import find_damage, recorded
from flows.dvc.remote import fetch_result, push_result, result_key
from flows.graph import Status
from flows.stage import StageFailedError, StageRunner
from tests.support.fleet import clone_of, make_fleet
from tests.support.toy import Toy

MERGE = "stages/merge/__main__.py"


def edit_param(toy: Toy) -> None:
    toy.replace("rate: 1.0", "rate: 1.5")


def edit_source(toy: Toy) -> None:
    toy.replace("3.5,1", "9.9,1", MERGE)


def edit_input(toy: Toy) -> None:
    toy.replace("0 1 a", "0 1 b", "data/cut/0.txt")


def switch_branch(toy: Toy) -> None:
    toy.git("switch", "-q", "next")


EDITS = {
    edit_param: ["params.yaml: merge.rate: 1.0 → 1.5"],
    edit_source: [MERGE],
    edit_input: ["data/cut/0.txt"],
    switch_branch: ["params.yaml: merge.rate: 1.0 → 2.0", MERGE],
}


def by_dvc(toy: Toy) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    code, output = toy.call("-m", "dvc", "repro", "-s", "merge", PATH=path)
    return output if code else "recorded"


def by_flow(toy: Toy) -> str:
    """Run merge as the flow does."""
    runner = StageRunner(toy.root)
    try:
        runner.run(load_graph(toy.root)["merge"])
    except StageFailedError as error:
        return str(error)
    finally:
        runner.stop()
    return "recorded"


def while_it_runs(toy: Toy, run: Callable[[Toy], str], edit: Callable[[Toy], None]) -> str:
    """Run merge, edit something meanwhile, and return how it ended."""
    toy.ran()
    hold = toy.mark("hold.merge")
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(run, toy)
        try:
            toy.until_it_runs("merge")
            edit(toy)
        finally:
            hold.unlink()
        return ending.result()


def records(toy: Toy) -> tuple[str, list[str]]:
    """Return dvc.lock and the names of the run cache's entries."""
    runs = (toy.root / ".dvc/cache/runs").glob("*/*/*")
    return toy.lock(), sorted(path.name for path in runs)


@pytest.fixture
def edited_toy(done_toy):
    """Give the toy with merge to be made anew, and a branch on which everything is different."""
    done_toy.replace("rate: 0.5", "rate: 1.0")
    done_toy.git("commit", "-qam", "rate 1.0")
    done_toy.git("switch", "-qc", "next")
    done_toy.replace("rate: 1.0", "rate: 2.0")
    edit_source(done_toy)
    done_toy.git("commit", "-qam", "next")
    done_toy.git("switch", "-q", "-")
    return done_toy


@pytest.mark.parametrize("run", [by_dvc, by_flow])
@pytest.mark.parametrize("edit", EDITS)
def test_what_changed_while_a_stage_ran_is_named_and_nothing_is_recorded(edited_toy, edit, run):
    before = records(edited_toy)
    said = while_it_runs(edited_toy, run, edit)
    assert "merge is not recorded, because this changed while it ran: " in said
    assert all(words in said for words in EDITS[edit]), said
    assert records(edited_toy) == before
    assert {step.stage.name: step.status for step in make_plan(edited_toy.root)}["merge"] in (
        Status.MUST_RUN,
        Status.MAY_RUN,
    )


@pytest.mark.parametrize("run", [by_dvc, by_flow])
def test_an_edit_of_what_a_stage_does_not_read_is_no_matter(edited_toy, run):
    def edit(toy: Toy) -> None:
        toy.replace("factor: 2", "factor: 3  # of side")
        toy.replace("print(", "print('later', ", "stages/evaluation/__main__.py")

    assert while_it_runs(edited_toy, run, edit) == "recorded"
    assert "up to date" in edited_toy.dvc("status", "merge")


@pytest.mark.parametrize("late", ["source", "param", "other param", "an added file"])
def test_an_edit_between_the_end_and_the_record_takes_the_record_back(edited_toy, late):
    """DVC hashes what a stage depends on when its process has ended; `atexit` comes before that."""
    old, new, file = {
        "source": ("9.9,1", "8.8,1", MERGE),
        "param": ("rate: 1.0", "rate: 1.5", "params.yaml"),
        "other param": ("factor: 2", "factor: 3", "params.yaml"),
        "an added file": ("", "2 1 a", "data/cut/2.txt"),
    }[late]
    edit_source(edited_toy)
    code = (
        "\nimport atexit\n"
        f"def late(path=Path({file!r})):\n"
        "    text = path.read_text() if path.exists() else ''\n"
        f"    path.write_text(text.replace({old!r}, {new!r}, 1))\n"
        "atexit.register(late)\n"
    )
    with (edited_toy.root / MERGE).open("a") as source:
        source.write(code)
    _, runs = records(edited_toy)
    said = by_flow(edited_toy)
    if late == "other param":
        assert said == "recorded"
        return
    name = {"source": MERGE, "param": "params.yaml: merge", "an added file": "data/cut"}[late]
    assert said == (
        f"merge is not recorded, for this changed as it ended: {name}; run the same again"
    )
    assert records(edited_toy)[1] == runs
    assert "  cut@0:\n" in edited_toy.lock()
    assert recorded(edited_toy.root, ["merge"]) == {}
    assert "merge" in edited_toy.dvc("status", "merge")


def test_files_in_a_folder_count_as_dvc_counts_them(edited_toy):
    """.dvcignore and the guard exclude the same, wherever it lies."""
    for name in ("README.md", "3.partial", "a.partial/4.txt", "__pycache__/5.pyc", "b/6.txt"):
        path = edited_toy.root / "data/cut" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    assert by_flow(edited_toy) == "recorded"
    (cut,) = (
        dep for dep in recorded(edited_toy.root, ["merge"])["merge"]["deps"] if "nfiles" in dep
    )
    assert cut["nfiles"] == len(["0.txt", "1.txt", "README.md", "b/6.txt"])


def test_a_full_disk_is_told_in_one_line(toy):
    code = "\nraise OSError(28, 'cannot write data/download/x: No space left on device')\n"
    with (toy.root / "stages/download/__main__.py").open("a") as source:
        source.write(code)
    with pytest.raises(StageFailedError) as caught:
        StageRunner(toy.root).run(load_graph(toy.root)["download"])
    assert "No space left on device; make room and run the same again" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_entries_are_those_of_dvc_lock(done_toy):
    entries = recorded(done_toy.root, ["merge", "cut@1", "nothing"])
    assert set(entries) == {"merge", "cut@1"}
    assert entries["merge"]["params"] == {"params.yaml": {"merge": {"rate": 0.5}}}
    assert entries["cut@1"]["cmd"] == "python -m stages cut 1"
    assert [out["path"] for out in entries["cut@1"]["outs"]] == ["data/cut/1.txt"]


# ---------------------------------------------------------------------------------- environment

LOCK = "requirements-stages.lock"


def test_other_packages_are_another_key_and_their_results_are_not_taken(fresh, tmp_path):
    shutil.copytree(fresh.root, tmp_path / "toy")
    toy = Toy(tmp_path / "toy")
    toy.mark(LOCK, "torch==2.8\n")
    toy.mark("pyproject.toml", "[project]\ndependencies = []\n")
    toy.replace("      - stages/download/", f"      - {LOCK}\n      - stages/download/", "dvc.yaml")
    toy.git("add", "-A")
    toy.git("commit", "-qm", "torch 2.8")
    make_fleet(toy, 0)
    toy.dvc("repro", "-s", "download")
    push_result(toy.root, "download")
    key = result_key(toy.root, "download")

    same, other = clone_of(toy, "same"), clone_of(toy, "other")
    other.mark(LOCK, "torch==2.15\n")
    assert result_key(same.root, "download") == key != result_key(other.root, "download")
    assert fetch_result(same.root, "download")
    assert not fetch_result(other.root, "download")


# ----------------------------------------------------------------------------------- verification


def verify(toy: Toy) -> tuple[int, str]:
    return toy.flows("verify")


@pytest.mark.parametrize("link", ["reflink,copy", "hardlink"])
def test_results_edited_in_place_are_named(done_toy, link):
    done_toy.dvc("config", "cache.type", link)
    done_toy.dvc("checkout", "--relink")
    assert verify(done_toy) == (0, "dvc.lock: 8 outputs, all as it says\n")

    path = done_toy.root / "data/merge/all.txt"
    path.chmod(0o644)
    with path.open("a") as file:
        file.write("edited by hand")
    part = done_toy.root / "data/download/parts/a.txt"
    part.unlink()
    done_toy.mark("data/download/parts/c.txt")
    code, output = verify(done_toy)
    assert code == 1
    told = [
        "data/download/parts/c.txt is not in dvc.lock",
        "data/download/parts/a.txt is missing; `dvc checkout` restores it",
        "data/merge/all.txt is not what dvc.lock says",
    ]
    *lines, last = output.splitlines()
    if link == "hardlink":
        assert lines == told
        assert "the cache's copy of data/merge/all.txt" in last and "is damaged" in last
    else:
        assert [*lines, last] == told
        # The plan notices, too, and brings the true bytes back.
        steps = {step.stage.name: step.status for step in make_plan(done_toy.root)}
        assert steps["merge"] is Status.RESTORABLE


def test_what_is_missing_is_said_to_come_from_where_it_is(done_toy):
    """As in a clone, which has dvc.lock and neither results nor a cache."""
    cache, kept, data = (done_toy.root / path for path in (".dvc/cache", "kept", "data"))
    shutil.rmtree(data)
    assert verify(done_toy) == (1, "no results here yet: `dvc checkout` restores them\n")
    cache.rename(kept)
    assert verify(done_toy) == (1, "no results here yet: `make repro` computes them\n")
    done_toy.dvc("remote", "add", "-q", "-d", "far", "far")
    assert verify(done_toy) == (1, "no results here yet: `dvc pull` fetches them\n")
    kept.rename(cache)
    done_toy.dvc("checkout", "-q")
    for path in ("merge/all.txt", "download/parts"):
        path = data / path
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(cache)
    assert verify(done_toy)[1].splitlines() == [
        "data/download/parts is missing; `dvc pull` fetches it",
        "data/merge/all.txt is missing; `dvc pull` fetches it",
    ]


def test_a_damaged_list_of_files_is_found(done_toy):
    (listed,) = (done_toy.root / ".dvc/cache/files/md5").glob("*/*.dir")
    listed.chmod(0o644)
    listed.write_text(listed.read_text() + " ")
    _, damage = find_damage(done_toy.root)
    assert any("copy of data/download/parts" in line and "damaged" in line for line in damage)


def test_the_project_links_its_cache_in_no_way_that_an_edit_goes_through(repository):
    text = (repository / ".dvc/config").read_text(encoding="utf-8")
    assert 'type = "reflink,copy"' in text
