"""The plan is held to what `dvc repro` then does: this is the contract with DVC's insides."""

import re
import shutil

import pytest

from flows.dvc.plan import Files, make_plan
from flows.dvc.project import is_params, load_graph, locked_repo
from flows.dvc.records import ENTRY, sort_lock
from flows.graph import DagError, Status

UP, BACK, RUN, OPEN = Status.UP_TO_DATE, Status.RESTORABLE, Status.MUST_RUN, Status.MAY_RUN
NAMES = ["download", "cut@0", "cut@1", "merge", "evaluation", "side"]


def statuses(toy) -> dict[str, Status]:
    return {step.stage.name: step.status for step in make_plan(toy.root)}


def reasons(toy) -> dict[str, str]:
    return {step.stage.name: "; ".join(step.reasons) for step in make_plan(toy.root)}


def repro(toy) -> dict[str, Status]:
    """Run `dvc repro` and return what it did with each stage, in the words of the plan."""
    output = toy.dvc("repro")
    said = {
        UP: [n for n in NAMES if f"Stage '{n}' didn't change, skipping" in output],
        BACK: [n for n in NAMES if f"Stage '{n}' is cached - skipping run" in output],
        RUN: [n for n in NAMES if f"Running stage '{n}'" in output],
    }
    return {name: status for status, names in said.items() for name in names}


def test_graph_has_the_edges_cores_params_and_files_of_dvc_yaml(toy):
    graph = load_graph(toy.root)
    assert list(graph) == NAMES
    assert graph["cut@1"].group == "cut"
    assert graph["cut@1"].command == "python -m stages cut 1"
    assert graph["merge"].needs == ("cut@0", "cut@1")
    assert graph["merge"].inputs == ("data/cut", "stages/merge/__main__.py")
    assert graph["merge"].plots == ("data/merge/curve.csv",)
    assert graph["merge"].cores == 64
    assert graph["side"].params == ("side.factor",)
    assert graph["evaluation"].metrics == ("data/evaluation/metrics.json",)
    assert "data/evaluation/montage.png" in graph["evaluation"].outputs
    assert (graph["download"].cores, graph["download"].pool) == (1, "cpu")


def test_targets_take_their_upstream_and_only_that(toy):
    assert list(load_graph(toy.root, ["cut"])) == ["download", "cut@0", "cut@1"]
    assert [step.stage.name for step in make_plan(toy.root, ["side"])] == ["download", "side"]
    with pytest.raises(ValueError, match=r"no stage 'sid'; there are: download, cut, merge"):
        load_graph(toy.root, ["sid"])


@pytest.mark.parametrize(
    ("meta", "told"),
    [
        ("3", "meta: expected a mapping, found 3"),
        ("{cores: many}", "meta.cores: expected a whole number >= 1, found many"),
        ("{cores: -3}", "meta.cores: expected a whole number >= 1, found -3"),
        ("{gpus: 0.5}", "meta.gpus: expected a whole number >= 0, found 0.5"),
    ],
)
def test_what_a_stage_takes_has_to_be_a_whole_number(toy, meta, told):
    toy.replace("meta: {cores: 64}", f"meta: {meta}", "dvc.yaml")
    with pytest.raises(DagError, match=f"^dvc.yaml: merge: {told}$"):
        load_graph(toy.root)


def test_fresh_project_must_run_from_the_top(toy):
    assert statuses(toy) == {name: OPEN for name in NAMES} | {"download": RUN}
    assert reasons(toy)["download"] == "dvc.lock has no run of it"
    assert reasons(toy)["merge"] == "after cut"
    assert not (toy.root / "dvc.lock").exists()


def test_plan_through_the_life_of_a_project(done_toy):
    toy = done_toy
    assert statuses(toy) == dict.fromkeys(NAMES, UP) == repro(toy)

    # A changed param: its stages must run, what is downstream is open, the rest stays.
    toy.replace("by: 1", "by: 2")
    assert statuses(toy) == {
        "download": UP, "cut@0": RUN, "cut@1": RUN, "merge": OPEN, "evaluation": OPEN, "side": UP
    }  # fmt: skip
    assert reasons(toy)["cut@0"] == "cut.by: 1 → 2"
    did = repro(toy)
    assert did["download"] == did["side"] == UP
    assert did["cut@0"] == did["merge"] == did["evaluation"] == RUN

    # Taken back: all of it comes from the run cache, transitively, through the folder that merge
    # depends on.
    toy.replace("by: 2", "by: 1")
    plan = statuses(toy)
    assert plan == {
        "download": UP, "cut@0": BACK, "cut@1": BACK, "merge": BACK, "evaluation": BACK, "side": UP
    }  # fmt: skip
    toy.ran()
    assert repro(toy) == plan
    assert toy.ran() == []

    # The same from the top, through files and folders inside a folder that is restored.
    toy.replace("lines: 3", "lines: 4")
    assert statuses(toy) == {name: OPEN for name in NAMES} | {"download": RUN}
    assert set(repro(toy).values()) == {RUN}
    toy.replace("lines: 4", "lines: 3")
    assert statuses(toy) == dict.fromkeys(NAMES, BACK) == repro(toy)


def test_lost_files_are_restored_without_touching_what_is_downstream(done_toy):
    shutil.rmtree(done_toy.root / "data" / "cut")
    plan = statuses(done_toy)
    assert plan == dict.fromkeys(NAMES, UP) | {"cut@0": BACK, "cut@1": BACK}
    assert reasons(done_toy)["cut@0"] == "data/cut/0.txt is missing"
    assert repro(done_toy) == plan
    assert done_toy.ran() == []


def test_all_results_lost_but_the_cache_are_restored(done_toy):
    shutil.rmtree(done_toy.root / "data")
    assert statuses(done_toy) == dict.fromkeys(NAMES, BACK) == repro(done_toy)
    assert done_toy.ran() == []


def test_changed_code_and_command_are_reasons(done_toy):
    done_toy.replace("shard = sys", "shard =  sys", "stages/cut/__main__.py")
    done_toy.replace("-m stages side", "-m  stages side", "dvc.yaml")
    told = reasons(done_toy)
    assert told["cut@0"] == "stages/cut/__main__.py changed"
    assert told["side"] == "the command changed"
    # The same outputs come out of it, so what is downstream need not run; the plan cannot know.
    assert statuses(done_toy)["merge"] == OPEN
    assert repro(done_toy)["merge"] == UP


def test_plan_in_a_clone_without_cache_runs_from_the_top(done_toy):
    shutil.rmtree(done_toy.root / "data")
    shutil.rmtree(done_toy.root / ".dvc" / "cache")
    assert statuses(done_toy) == {name: OPEN for name in NAMES} | {"download": RUN}
    before = done_toy.lock()
    assert set(repro(done_toy).values()) == {RUN}
    assert done_toy.lock() == before


def test_plan_changes_nothing(done_toy):
    done_toy.replace("by: 1", "by: 5")
    before = done_toy.lock()
    make_plan(done_toy.root)
    assert done_toy.lock() == before
    assert done_toy.git("status", "--short") == " M params.yaml\n?? dvc.lock\n"


def test_missing_param_is_named(done_toy):
    done_toy.replace("  by: 1", "  bye: 1")
    done_toy.replace("params: [cut]", "params: [cut.by]", "dvc.yaml")
    with pytest.raises(DagError, match=r"cut\.by.*params\.yaml"):
        make_plan(done_toy.root)


def test_a_param_that_the_run_cache_does_not_see_is_refused(toy):
    """DVC 3.67 restores the old result when a param called size or nfiles changes."""
    toy.replace("lines: 3", "size: 3")
    with pytest.raises(DagError, match=r"params\.yaml: download\.size: .* give it another name"):
        load_graph(toy.root)


@pytest.mark.parametrize(
    ("folder", "message"),
    [(".git", "not a git repository; `git init` makes one"), (".dvc", "not a DVC project")],
)
def test_not_a_repository_is_said(toy, folder, message):
    shutil.rmtree(toy.root / folder)
    with pytest.raises(DagError, match=message):
        load_graph(toy.root)


def test_unreadable_dvc_yaml_is_named(toy):
    (toy.root / "dvc.yaml").write_text("stages: [\n")
    with pytest.raises(DagError, match=r"dvc\.yaml"):
        load_graph(toy.root)


def test_the_lock_gets_the_order_of_one_dvc_repro(done_toy):
    path = done_toy.root / "dvc.lock"
    expected = path.read_text()
    head, *entries = re.split(r"(?m)^(?=  \w)", expected)
    path.write_text("".join((head, *reversed(entries))))
    sort_lock(done_toy.root)
    assert path.read_text() == expected
    by_hand = "".join((head, "<<<<<<< HEAD\n", *reversed(entries)))
    path.write_text(by_hand.replace("<<<<<<< HEAD", "  # by hand"))
    before = path.read_text()
    sort_lock(done_toy.root)
    assert path.read_text() == before


def test_a_lock_that_was_cut_off_is_named_with_what_helps(done_toy):
    path = done_toy.root / "dvc.lock"
    whole = path.read_text()
    for kept in (0, whole.rindex("hash:") + 2):
        path.write_text(whole[:kept])
        with pytest.raises(
            DagError, match=r"dvc\.lock'.*; `git restore \S*dvc\.lock` .* delete it"
        ):
            make_plan(done_toy.root)
    path.unlink()
    assert {step.status for step in make_plan(done_toy.root)} == {Status.RESTORABLE}


def test_this_repositorys_lock_has_the_form_that_is_sorted(repository):
    head, section, body = (repository / "dvc.lock").read_text().partition("stages:\n")
    assert (head, section) == ("schema: '2.0'\n", "stages:\n")
    assert "".join(entry.group() for entry in ENTRY.finditer(body)) == body


def test_a_param_that_no_longer_exists_in_any_record_is_told_without_a_value(done_toy):
    done_toy.replace("merge:\n  rate: 0.5", "merge: {}")
    assert reasons(done_toy)["merge"] == "merge.rate: 0.5 → –"


def test_params_files_are_read_as_dvc_reads_them(toy):
    toy.replace("  factor: 2", "  factor: 2\n  list: [1, {deep: 3}]\n  none:")
    keys = ["download", "cut.by", "side.list", "side.list.1.deep", "side.none", "side.lost", "lost"]
    toy.replace("[side.factor]", f"[{', '.join(keys)}]", "dvc.yaml")
    with locked_repo(toy.root) as repo:
        files = Files()
        deps = [dep for stage in repo.index.stages for dep in stage.deps if is_params(dep)]
        assert [files.read_params(dep) for dep in deps] == [dep.read_params() for dep in deps]
        read = files.read_params(deps[-1])
        assert {"side.list.1.deep": 3, "side.none": None}.items() <= read.items()
