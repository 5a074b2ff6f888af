"""The claims: what is compared, when a row and a claim hold, and that no seed is measured twice."""

import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from claims import measure
from claims.comparisons import ARMS, CLAIMS, FACTS, FILES, PIPELINE, seed_params
from claims.measure import TABLE, measure_claims, seed_points, write_table
from claims.readme import table_of
from claims.records import (
    FOLDER,
    Experiment,
    Record,
    compared_digest,
    experiment_digest,
    is_usable,
    read_records,
    results_of,
    write_record,
)
from claims.table import claims_page
from claims.verdicts import difference, holm, joint_verdict
from flows.cli import main
from flows.dvc.project import load_graph
from flows.git import git
from flows.overlay import look_up, read_params
from flows.sweeps.plan import worktree
from flows.sweeps.report import Result

ROOT = Path(__file__).parents[2]
METRICS = "data/label_quality/metrics.json"
ROWS = {row.what: row for claim in CLAIMS for row in claim.comparisons}
# Numbers that let every claim hold, by the first of these words in their path.
NUMBERS = {
    "first_look": 30,
    "pseudo_mask": 30,
    "pseudo": 50,
    "masks": 30,
    "boxes": 50,
    "fixed_square": 30,
    "found_detector": 50,
    "novel_classes_won": 5,
    "novel_classes": 6,
    "recall.wspn": 50,
    "recall": 30,
    "base_only": 1,
    "wsddn": 10,
    "evaluation.detector": 40,
    "longer": 41,
    "oracle": 45,
    "finetune": 60,
}
GOOD = {path: float(next(NUMBERS[w] for w in NUMBERS if w in path)) for path in FACTS}


def record(seed: int, digest: str = "now", commit: str = "abc", **changes: float) -> Record:
    return Record(seed, commit, digest, None, {**GOOD, **changes})


# ------------------------------------------------------------------------------- what is compared


def test_every_letter_is_there_and_the_papers_procedure_where_ours_decides():
    assert [claim.letter for claim in CLAIMS] == list("abcdefghi")
    with_paper = {c.letter for c in CLAIMS if any(row.part == "paper" for row in c.comparisons)}
    assert with_paper == set("abfi")
    assert len(ROWS) == sum(len(claim.comparisons) for claim in CLAIMS)  # no sentence twice


def test_what_is_ours_is_in_params_and_the_files_are_made_by_the_arms_targets(tmp_path):
    params, points = read_params(ROOT), seed_points(ROOT, 7)
    for comparison in ROWS.values():
        for key in re.findall(r"`([^`]+)`", comparison.ours):
            assert look_up(params, key) is not None, key
    for changes in ARMS.values():
        assert all(look_up(params, key) is not None for key in changes)
    (tmp_path / ".dvc").mkdir()  # without comparators/.dvcignore, as in a worktree
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n", encoding="utf-8")
    (tmp_path / "comparators").mkdir()
    for name in ("dvc.yaml", "params.yaml", "comparators/dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    graph = load_graph(tmp_path, [*points["own"].targets])
    for arm, path in FILES.values():
        (maker,) = [name for name, stage in graph.items() if path in stage.metrics]
        assert maker in points[arm].targets
    assert {path.partition(".")[0] for path in FACTS} == set(FILES)


def test_the_papers_rows_name_no_default_that_they_switch_off():
    paper = [row.ours for row in ROWS.values() if row.part == "paper"]
    off = ("activation", "activation.reach", "ranking")
    assert not [ours for ours in paper if any(f"`{key}`" in ours for key in off)]


# -------------------------------------------------------------------------------------- verdicts


def test_interval_of_three_seeds_by_hand():
    """Published gains of iterative masking: t(2, 97.5 %) = 4.3027; deviation .00237 / √3."""
    found = difference([0.0009, 0.0049, 0.0050], [0.0, 0.0, 0.0])
    assert found.mean == pytest.approx(0.0036)
    half = 4.302653 * 0.0023388 / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((0.0036 - half, 0.0036 + half), abs=1e-6)
    assert found.verdict == "undecided"
    # t = 2.666 with two degrees of freedom: one-sided p = (1 - t / √(2 + t²)) / 2
    t = 0.0036 / (0.0023388 / math.sqrt(3))
    assert found.p == pytest.approx((1 - t / math.sqrt(2 + t**2)) / 2, abs=1e-4)


def test_verdicts_are_where_the_interval_lies():
    assert difference([0.0037, 0.0030, 0.0040], [0, 0, 0]).verdict == "holds"
    assert difference([-3.0, -3.5, -3.2], [0, 0, 0]).verdict == "fails"
    # 46 of 70 is .657: the differences are of .65 × 70 = 45.5
    found = difference([46.0, 46.1, 45.9], [70.0, 70.0, 70.0], factor=0.65)
    assert found.values == pytest.approx((0.5, 0.6, 0.4))
    assert found.verdict == "holds"


def test_not_below_needs_the_lower_bound_above_its_margin():
    values = [-1.0, -0.9, -1.1]
    assert difference(values, [0, 0, 0]).verdict == "fails"
    assert difference(values, [0, 0, 0], margin=-2.0).verdict == "holds"
    assert difference([-1.0, 3.0, -4.0], [0, 0, 0], margin=-2.0).verdict == "undecided"


def test_one_seed_decides_nothing_and_equal_seeds_decide_all():
    one = difference([60.0], [50.0])
    assert (one.verdict, one.p) == ("undecided", 1.0)
    assert (difference([2, 2], [1, 1]).verdict, difference([2, 2], [1, 1]).p) == ("holds", 0.0)
    assert difference([1, 1], [1, 1]).verdict == "undecided"
    assert difference([0, 0], [1, 1]).verdict == "fails"


def test_a_row_holds_exactly_if_its_own_p_does():
    for values in ([1.0, 2.0, 1.5], [1.0, 4.0, -1.0], [0.5, 2.0, 1.2, 0.7]):
        found = difference(values, [0.0] * len(values))
        assert (found.verdict == "holds") == (found.p < 0.025)


def test_holm_by_hand():
    """Sorted .01 × 4, .02 × 3, .03 × 2, .04 × 1, none below the one before."""
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.001]) == [0.001]
    assert holm([]) == []


def test_a_claim_holds_by_its_adjusted_p_and_fails_by_any_row():
    good, bad = difference([1, 1], [0, 0]), difference([-1, -1], [0, 0])
    assert joint_verdict([good, good], 0.02) == "holds"
    assert joint_verdict([good, good], 0.03) == "undecided"  # each row holds; corrected, not
    assert joint_verdict([good, bad], 1.0) == "fails"


# ----------------------------------------------------------------------------------------- table


def cells(table: str, start: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(start)]
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_a_good_record_lets_every_claim_hold():
    table = claims_page([record(1), record(2), record(3)])
    lines = [line for line in table.splitlines() if " ours |" in line or " the paper's |" in line]
    assert len(lines) == len(CLAIMS) + 4  # letters with two procedures
    assert all(line.endswith("| holds |") for line in lines)


def test_table_shows_means_difference_interval_margin_and_verdict():
    better = "evaluation.finetune.generalized.novel.segm.AP50"
    worse = "evaluation.detector.generalized.novel.segm.AP50"
    values = ((51.0, 50.0), (52.0, 50.0), (50.0, 50.0))
    records = [record(s, **{better: b, worse: w}) for s, (b, w) in enumerate(values)]
    what = "novel mask AP50: fine-tuned at most 2 points below the detector"
    row = cells(claims_page(records), f"| f | {what} |")
    assert row[2:] == [
        "″",  # as in the rows above, of base classes
        "51.0",
        "50.0",
        "+1.0 [-1.5, +3.5]",
        "holds",
    ]


def test_table_gives_parts_of_one_finer_and_the_factor():
    changes = {"rpn.novel_classes_won.wspn.rpn.recall@10": 4.0, "rpn.novel_classes": 5.0}
    changes |= {
        "quality.masks.pseudo.base.mean_iou": 0.4,
        "first_look.masks.pseudo.base.mean_iou": 0.3961,
    }
    table = claims_page([record(1, **changes)])
    gain = cells(table, "| a | pseudo-mask IoU, base: G ≥ 1 above G = 0 |")
    assert gain[3:] == ["0.400", "0.396", "+0.0039", "undecided"]
    what = "novel classes with a higher recall@10, more than half: WSPN than a base-trained RPN"
    won = cells(table, f"| b | {what}")
    assert won[3:] == ["4.0", "5.0 × 0.5", "+1.5", "undecided"]


def test_detectors_are_shown_with_the_spread_of_their_seeds():
    fact = "evaluation.detector.generalized.novel.bbox.AP50"
    records = [record(seed, **{fact: value}) for seed, value in enumerate((48.0, 50.0, 52.0))]
    table = table_of(claims_page(records), "seeds")
    assert "means of seeds 0, 1, 2" in table
    # t(.975, 2) × 2 / √3 = 4.303 × 1.155
    assert cells(table, "| pseudo-masks (")[2].startswith("50.0 ± 5.0 / ")
    assert cells(table, "| ground truth of base classes")[1] == "– / –"  # no claim compares it
    alone = table_of(claims_page(records[:1]), "seeds")
    assert cells(alone, "| pseudo-masks (")[2].startswith("48.0 / ")


def test_table_says_whose_it_is_and_what_was_left_out():
    used = [record(1, commit="abc"), record(2, commit="abc"), record(3, "other", "def")]
    page = claims_page(used, [record(4, "old", "012")])
    first, second = table_of(page, "verdicts").splitlines()[:2]
    assert (
        first
        == "Measured: seeds 1, 2 at commit abc; seed 3 at commit def, of 2 different experiments."
    )
    assert second.startswith("Left out") and second.endswith("seed 4 at commit 012.")
    alone = table_of(claims_page(used[:1]), "verdicts")
    assert alone.splitlines()[:2] == ["Measured: seed 1 at commit abc.", ""]
    assert alone.endswith("count for no claim.")


# ---------------------------------------------------------------------------- validity of records


def lock(**changes: str) -> dict:
    """Return a dvc.lock whose predictions come from labels; nothing compared is of phrases."""
    files = {
        "labels": ["data/pseudo_labels/annotations.json", "l"],
        "weights": ["data/detector/model.safetensors", "w"],
        "predictions": ["data/evaluation/predictions_detector.json", "p"],
        "metrics": ["data/evaluation/metrics.json", "m"],
        "phrases": ["data/phrases", "x"],
    }
    for name, md5 in changes.items():
        files[name][1] = md5
    outs = {name: {"path": path, "md5": md5} for name, (path, md5) in files.items()}
    labels, weights = ({"path": outs[name]["path"]} for name in ("labels", "weights"))
    return {
        "stages": {
            "pseudo_labels": {"outs": [outs["labels"]]},
            "phrases": {"outs": [outs["phrases"]]},
            "detector": {"deps": [labels], "outs": [outs["weights"]]},
            "evaluation": {"deps": [weights], "outs": [outs["predictions"], outs["metrics"]]},
        }
    }


def test_a_record_is_valid_while_what_it_compares_is_the_same():
    assert results_of(lock()) == ["l", "p"]
    kept = replace(record(1, "then"), outputs=results_of(lock()))
    for changes, valid in (
        ({}, True),
        ({"phrases": "y", "weights": "v", "metrics": "n"}, True),
        ({"labels": "y"}, False),
        ({"predictions": "y"}, False),
    ):
        now = Experiment("now", results_of(lock(**changes)), "these")
        assert is_usable(kept, now, accept_older=False) is valid
        assert is_usable(replace(kept, compared="these"), now, accept_older=False) is valid
        assert not is_usable(replace(kept, compared="others"), now, accept_older=False)
    assert not is_usable(kept, Experiment("now", None, "these"), accept_older=False)


@pytest.mark.parametrize(
    ("file", "old", "new", "counts"),
    [
        ("claims", "", "", True),
        ("params.yaml", "own: 1", "own: 2", True),
        ("params.yaml", "sides: [1]", "sides: [2]", False),
        (PIPELINE, "steps: 5", "steps: 6", True),
        (PIPELINE, "stages:", "# a word\nstages:", False),
        ("comparators/longer/method.yaml", "params: {}", "params: {seed: 2}", True),
        ("comparators/longer/method.yaml", "paper: null", "paper: one", False),
        ("comparators/longer/loss.py", "1", "2", True),
        ("comparators/longer/README.md", "1", "2", False),
        ("stages/models/one/network.py", "one", "two", False),
    ],
)
def test_what_decides_the_compared_numbers_alone_has_a_digest(
    project, monkeypatch, file, old, new, counts
):
    """What decides the experiment's results, too, shows in their hashes."""
    longer = project / "comparators/longer"
    (longer / "method.yaml").write_text("paper: null\nparams: {}\n")
    for name in ("loss.py", "README.md"):
        (longer / name).write_text("1")
    pipeline = (project / PIPELINE).read_text().replace("/method.yaml", "")
    (project / PIPELINE).write_text(pipeline + "      params: [longer, label_quality]\n")
    with (project / "params.yaml").open("a") as params:
        params.write("longer: {own: 1}\n")
    before = compared_digest(project)
    if file == "claims":
        monkeypatch.setitem(ARMS, "another", {"seed": 1})
    else:
        text = (project / file).read_text()
        assert old in text
        (project / file).write_text(text.replace(old, new))
    assert (compared_digest(project) != before) is counts


def test_results_that_dvc_lock_has_of_another_experiment_are_not_recorded(
    project, runs, monkeypatch
):
    def and_edit(root, *arguments, pools, run=measure.run_points):
        results = run(root, *arguments, pools=pools)
        (root / "stages/label_quality/__main__.py").write_text("two")
        return results

    monkeypatch.setattr(measure, "run_points", and_edit)
    monkeypatch.setattr("claims.records.committed_results", lambda root: ["a"])
    measure_claims(project, [1, 2], accept_older=True)
    assert [record.outputs for record in read_records(project)] == [None, ["a"]]


@pytest.mark.parametrize("record", read_records(ROOT), ids=lambda record: f"seed {record.seed}")
def test_committed_records_name_the_results_of_their_commit(record):
    if git(ROOT, "rev-parse", "--is-shallow-repository") == "true":
        pytest.skip("a shallow clone has not the commits that records name; git fetch --unshallow")
    commit = record.lock_commit or record.commit.rstrip("+")
    lock = git(ROOT, "show", f"{commit}:dvc.lock")
    assert record.outputs == results_of(YAML(typ="safe").load(lock))


# ------------------------------------------------------------------------------------- resumption


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Give a repository with two stages, one with an architecture's folder among its code."""
    for name, text in {
        "params.yaml": "seed: 0\nlabel_quality: {sides: [1]}\nunread: 1\n"
        "detector: {architecture: one}\ndownload: {scenes: {class_split: 0}}\n",
        "requirements.lock": "numpy==2.0\n",
        "dvc.yaml": "stages:\n  label_quality:\n    cmd: python -m stages label_quality\n"
        "    deps: [data/pseudo_labels, stages/label_quality/__main__.py]\n"
        "    params: [label_quality, seed, download]\n",
        PIPELINE: "stages:\n  oracle:\n    cmd: python -m stages oracle\n"
        "    deps: ['stages/models/${detector.architecture}']\n"
        "  trained:\n    foreach: {longer: {steps: 5}}\n    do:\n"
        "      cmd: python -m stages detector ${item.steps}\n"
        "      deps: ['comparators/${key}/method.yaml']\n",
        "comparators/longer/method.yaml": "steps: 1",
        "stages/label_quality/__main__.py": "one",
        "stages/models/one/network.py": "one",
        "stages/models/two/network.py": "two",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "toy")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "toy@localhost")
    (tmp_path / ".gitignore").write_text(".sweeps\n")
    for words in ("init -q", "add --all", "commit -q -m one"):
        subprocess.run(["git", *words.split()], cwd=tmp_path, check=True)
    return tmp_path


@pytest.fixture
def runs(project, monkeypatch):
    """Give the seeds whose points were run, in order; the runs write the metrics of `GOOD`."""
    done: list[int] = []

    def run(root, name, points, cores, pools):
        seed = points[0].values["seed"]
        if seed == 13:
            raise KeyboardInterrupt
        done.append(seed)
        copied = [p for p in root.rglob("*") if p.is_file() and ".sweeps" not in p.parts]
        for point in points:
            folder = worktree(root, point)
            for path in copied:
                if ".git" not in path.parts:
                    target = folder / path.relative_to(root)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(path.read_bytes())
            params = folder / "params.yaml"
            params.write_text(params.read_text().replace(": 0", f": {seed}"))
        for name, (arm, path) in FILES.items():
            (point,) = [p for p in points if p.values == {**seed_params(seed), **ARMS[arm]}]
            metrics: dict = {}
            for fact in GOOD:
                head, *middle, last = fact.split(".")
                if head == name:
                    inner = metrics
                    for key in middle:
                        inner = inner.setdefault(key, {})
                    inner[last] = GOOD[fact]
            file = worktree(root, point) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            before = json.loads(file.read_text()) if file.is_file() else {}
            file.write_text(json.dumps({**before, **metrics}))
        return [Result(point, seed == 99, {}) for point in points]

    monkeypatch.setattr("claims.measure.run_points", run)
    return done


def test_a_seed_is_measured_once(project, runs):
    table = measure_claims(project, [1, 2])
    assert runs == [1, 2]
    assert measure_claims(project, [2, 1]) == table == (project / TABLE).read_text().rstrip("\n")
    assert runs == [1, 2]
    measure_claims(project, [3])
    assert runs == [1, 2, 3]
    first, second, third = read_records(project)
    assert (first.seed, second.seed, third.seed) == (1, 2, 3)
    assert first.facts == GOOD
    assert first.digest == experiment_digest(project)
    assert "seeds 1, 2, 3 at commit" in (project / TABLE).read_text()


def test_every_seed_is_the_experiment_and_some_changes_of_it(project):
    points = seed_points(project, 4)
    assert list(points) == list(ARMS)
    assert points["own"].values == {"seed": 4, "download.scenes.class_split": 4}
    assert points["plain"].values == {
        "seed": 4,
        "download.scenes.class_split": 4,
        "activation.reach": 0,
        "activation.weigh_visible": False,
        "pseudo_boxes.smoothing": 0,
        "pseudo_masks.smoothing": 0,
    }
    compared = (f"{PIPELINE}:oracle", f"{PIPELINE}:trained")
    assert points["own"].targets == ("label_quality", "evaluation", *compared)
    assert points["any_reach"].targets == ("label_quality",)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("params.yaml", "sides: [1]", "sides: [2]"),
        ("params.yaml", "architecture: one", "architecture: two"),
        ("requirements.lock", "2.0", "2.1"),
        ("dvc.yaml", "stages label_quality\n", "stages label_quality --fast\n"),
        ("stages/label_quality/__main__.py", "one", "two"),
        ("comparators/longer/method.yaml", "1", "2"),
        (PIPELINE, "steps: 5", "steps: 6"),
        ("stages/models/one/network.py", "one", "two"),
    ],
)
def test_another_experiment_is_measured_anew_and_the_older_record_left_out(
    project, runs, file, old, new
):
    measure_claims(project, [1, 2])
    text = (project / file).read_text()
    assert old in text
    (project / file).write_text(text.replace(old, new))
    with pytest.raises(ValueError, match="no record of the experiment as it is now, out of 2"):
        write_table(project)
    table = measure_claims(project, [2])
    assert runs == [1, 2, 2]
    head = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=project, capture_output=True, text=True
    ).stdout.strip()
    assert table_of(table, "verdicts").splitlines()[0] == f"Measured: seed 2 at commit {head}+."
    assert table_of(table, "verdicts").splitlines()[1].endswith(f": seed 1 at commit {head}.")
    accepted = measure_claims(project, [1], accept_older=True)
    assert runs == [1, 2, 2]
    assert table_of(accepted, "verdicts").splitlines()[0].endswith("of 2 different experiments.")
    assert f"seed 1 at commit {head};" in accepted


@pytest.mark.parametrize("file", ["params.yaml", "stages/models/two/network.py", "README.md"])
def test_what_decides_no_number_is_no_other_experiment(project, runs, file):
    measure_claims(project, [1])
    with (project / file).open("a") as text:
        text.write("\n# a word\n")
    if file == "params.yaml":
        changed = (project / file).read_text().replace("unread: 1", "unread: 2")
        (project / file).write_text(changed.replace("seed: 0", "seed: 5"))
    measure_claims(project, [1])
    assert runs == [1]


def test_rearranged_and_renamed_code_with_the_same_results_is_the_same_experiment(project, runs):
    def dvc(*words):
        command = [sys.executable, "-m", "dvc", *words]
        return subprocess.run(command, cwd=project, check=True, capture_output=True)

    def write_stage(code: str, output: str, path: str = "out"):
        text = f"from pathlib import Path\n\nPath({path!r}).write_text({output!r})  # {code}\n"
        text += f"metrics = Path({METRICS!r})\nmetrics.parent.mkdir(parents=True, exist_ok=True)\n"
        text += "metrics.write_text('{}')\n"
        (project / "stages/label_quality/__main__.py").write_text(text)

    (project / "dvc.yaml").write_text(
        "stages:\n  label_quality:\n    cmd: python stages/label_quality/__main__.py\n"
        "    deps: [stages/label_quality/__main__.py]\n    params: [label_quality]\n"
        f"    outs: [{METRICS}, out]\n"
    )
    (project / PIPELINE).write_text("stages:\n  oracle:\n    cmd: 'true'\n")
    dvc("init", "--subdir", "--quiet")
    write_stage("one", "1")
    dvc("repro", "--quiet", "dvc.yaml")
    measure_claims(project, [1])
    write_stage("two", "1")
    with pytest.raises(ValueError, match="no record of the experiment as it is now"):
        write_table(project)  # for dvc.lock is of the older code
    dvc("repro", "--quiet", "dvc.yaml")
    assert "Measured: seed 1 at" in write_table(project)
    write_stage("two", "1", "renamed")
    dag = (project / "dvc.yaml").read_text()
    dag = dag.replace("  label_quality:", "  renamed:").replace(", out]", ", renamed]")
    (project / "dvc.yaml").write_text(dag)
    dvc("repro", "--quiet", "dvc.yaml")
    assert "Measured: seed 1 at" in write_table(project)
    write_stage("two", "2", "renamed")
    dvc("repro", "--quiet", "dvc.yaml")
    with pytest.raises(ValueError, match="no record of the experiment as it is now"):
        write_table(project)


def test_a_killed_run_keeps_the_seeds_that_it_finished(project, runs):
    with pytest.raises(KeyboardInterrupt):
        measure_claims(project, [1, 13, 2])
    assert [record.seed for record in read_records(project)] == [1]
    measure_claims(project, [1, 2])
    assert runs == [1, 2]


def test_a_failed_seed_is_no_record(project, runs):
    with pytest.raises(RuntimeError, match=r"seed=99,.*failed; mend it and run `make claims`"):
        measure_claims(project, [1, 99])
    assert [record.seed for record in read_records(project)] == [1]


def test_code_that_changes_meanwhile_is_not_recorded_as_what_ran(project, runs, monkeypatch):
    from claims import measure

    run = measure.run_points

    def and_edit(root, *arguments, pools):
        results = run(root, *arguments, pools=pools)
        (root / "stages/label_quality/__main__.py").write_text("two")
        return results

    before = experiment_digest(project)
    monkeypatch.setattr("claims.measure.run_points", and_edit)
    with pytest.raises(ValueError, match="no record of the experiment as it is now"):
        measure_claims(project, [1])
    assert read_records(project)[0].digest == before


def test_a_record_that_lacks_a_number_is_measured_again(project, runs):
    measure_claims(project, [1])
    (kept,) = read_records(project)
    fewer = {path: value for path, value in kept.facts.items() if path != FACTS[0]}
    write_record(project, replace(kept, facts=fewer))
    measure_claims(project, [1], accept_older=True)
    assert runs == [1, 1]


def test_a_broken_record_is_named(project):
    (project / FOLDER).mkdir(parents=True)
    (project / FOLDER / "seed-3.json").write_text("{")
    with pytest.raises(ValueError, match=r"seed-3\.json: not a record of a seed"):
        write_table(project)


def test_a_missing_metric_is_an_error_and_no_record(project, runs, monkeypatch):
    monkeypatch.delitem(GOOD, "rpn.novel_classes")
    with pytest.raises(KeyError, match="novel_classes"):
        measure_claims(project, [1])
    assert read_records(project) == []


def test_a_metric_without_a_number_is_named(project, runs, monkeypatch):
    monkeypatch.setitem(GOOD, "comparators.oracle.generalized.novel.bbox.AP50", None)
    with pytest.raises(ValueError, match=r"comparators_evaluation/metrics\.json: .*AP50 is None"):
        measure_claims(project, [1])


def test_seeds_are_measured_on_workers_if_asked_for(project, runs, monkeypatch):
    def run(*arguments, pools, run=measure.run_points):
        asked.append(pools)
        return run(*arguments, pools=pools)

    asked: list = []
    monkeypatch.setattr(measure, "run_points", run)
    monkeypatch.setattr("flows.execution.require_fleet", lambda root: asked.append("is there one"))
    monkeypatch.chdir(project)
    assert main(["claims", "4"]) == main(["claims", "--pools", "5"]) == 0
    assert asked == [False, "is there one", True]


def test_the_command_takes_seeds_and_makes_the_table_alone_without_any(
    project, runs, monkeypatch, capsys
):
    monkeypatch.chdir(project)
    assert main(["claims", "4", "5"]) == 0
    assert main(["claims", "--table"]) == 0
    assert runs == [4, 5]
    assert "Measured: seeds 4, 5 at commit" in capsys.readouterr().out
    assert main(["claims", "--", "-1"]) == 2
    assert main(["claims", "--table", "4"]) == 2
