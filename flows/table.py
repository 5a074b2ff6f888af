"""Plain-text tables for the terminal: the plan, the stages with their seconds, the results."""

import hashlib
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from flows.graph import ABSENT, CHANGES_UPSTREAM, NEVER_RAN, Outcome, Status, Step

RESULTS = Path("data/evaluation/metrics.json")
LOCK, PARAMS = "dvc.lock", "params.yaml"
TRAINED = ("detector", "finetune")  # the second one starts from the first
GROUPS = ("base", "novel", "all")
PROTOCOLS = ("constrained", "generalized")
KINDS = {"bbox": "box", "segm": "mask"}
MISSING = "–"
OF_ANOTHER = "– (of another model)"  # the one that was evaluated is not the one of dvc.lock
HOW_TO_MEASURE = "`ovis-dag run evaluation` measures the model that dvc.lock has now"
LONGEST_NAME = 80
SHOWN_REASONS = 3
TITLE = "Results on the test images: AP50 (AP), percent"


def align(rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """Return rows of cells as lines with aligned columns; those in `right` are aligned right."""
    rows = [list(row) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = set(right)
    lines = (
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
    return "\n".join(lines)


def plan_table(steps: Sequence[Step]) -> str:
    """Return one line per group of shards: name, status and the first reasons for it."""
    rows = [("stage", "plan", "why")]
    for group in dict.fromkeys(step.stage.group for step in steps):
        shards = [step for step in steps if step.stage.group == group]
        reasons = dict.fromkeys(reason for step in shards for reason in step.reasons)
        words = _count(step.status.value for step in shards)
        name = f"{group} ({len(shards)} shards)" if len(shards) > 1 else shards[0].stage.name
        rows.append((name, words, "; ".join(list(reasons)[:SHOWN_REASONS])))
    return align(rows)


def _count(kinds: Iterable[str]) -> str:
    counts = sorted(Counter(kinds).items())  # in an order that who came first does not change
    return ", ".join(f"{n} {kind}" if len(counts) > 1 else kind for kind, n in counts)


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def count_stages(stages: Sequence[object]) -> str:
    """Return the number of stages and shards in words."""
    return counted(len(stages), "stage", "stages and shards")


def summarize_plan(steps: Sequence[Step]) -> str:
    """Return one sentence with the number of stages of each status."""
    counts = Counter(step.status for step in steps)
    words = ", ".join(f"{counts[status]} {status.value}" for status in Status if counts[status])
    return f"{count_stages(steps)}: {words}"


def stages_table(outcomes: Sequence[Outcome], last: dict[str, float]) -> str:
    """Return one line per group of shards: what happened, and the seconds.

    If a stage did not run, the seconds of its last real execution are shown in brackets.
    """
    rows = [("stage", "outcome", "seconds", "")]
    for group in dict.fromkeys(outcome.group for outcome in outcomes):
        shards = [outcome for outcome in outcomes if outcome.group == group]
        words = _count(shard.outcome for shard in shards)
        ran = any(shard.seconds for shard in shards)
        known = [shard.seconds if ran else last.get(shard.stage, 0.0) for shard in shards]
        seconds = f"{sum(known):.1f}" if any(known) else MISSING
        note = f"{len(shards)} shards" if len(shards) > 1 else ""
        note += f", the longest {max(known):.1f}" if note and any(known) else ""
        rows.append((group, words, seconds if ran else f"({seconds})", note))
    return align(rows, right=[2])


def name_execution(steps: Sequence[Step]) -> str:
    """Return a short name for an execution: what changed since the last one."""
    changed = [s for s in steps if s.status in (Status.MUST_RUN, Status.RESTORABLE)]
    reasons = list(dict.fromkeys(reason for step in changed for reason in step.reasons))
    told = [reason for reason in reasons if not reason.endswith((NEVER_RAN, CHANGES_UPSTREAM))]
    edits = [reason for reason in told if not reason.endswith(ABSENT)]
    fresh = all(step.status is not Status.UP_TO_DATE for step in steps)  # such as a new clone
    own = edits or ([] if fresh else told)
    if not own:
        return "first run" if reasons else "no change"
    words = "; ".join(own[:2]) + (f"; {len(own) - 2} more" if len(own) > 2 else "")
    return words if len(words) <= LONGEST_NAME else f"{words[: LONGEST_NAME - 1]}…"


def describe_execution(root: Path, outcomes: Sequence[Outcome]) -> str:
    """Return markdown on an execution: what ran, the results, and where to look."""
    kinds = Counter(outcome.outcome for outcome in outcomes)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    lines = [f"{count_stages(outcomes)}: {counts}.", ""]
    lines += [f"- `{o.stage}` failed: {o.message[:200]}" for o in outcomes if o.outcome == "failed"]
    if results := read_results(root):
        lines += ["```", results_table(results, read_supervision(root)), "```"]
        lines += ["", "Predictions: *Artifacts*, `data/evaluation/montage.png`."]
    return "\n".join(lines)


def read_results(root: Path) -> dict[str, Any] | None:
    """Return the evaluation's metrics, nested model → protocol → group → kind → metric."""
    path = root / RESULTS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_supervision(root: Path) -> dict[str, str]:
    """Return what each evaluated model has learned from: model → its sources in words.

    It is what the models were made with according to dvc.lock, not what params.yaml says now. If
    the results are of another model than dvc.lock has now, it is OF_ANOTHER: a stage by itself may
    have run, such as `detector` without `evaluation`. It is MISSING if the model started from one
    that dvc.lock no longer has.
    """
    path = root / LOCK
    stages = (YAML(typ="safe").load(path) or {}).get("stages", {}) if path.is_file() else {}
    results, told = root / RESULTS, dict[str, str]()
    known = not results.is_file() or (
        hashlib.md5(results.read_bytes(), usedforsecurity=False).hexdigest()
        == _md5(stages, "evaluation", "outs", RESULTS)
    )
    learned, same_start = "", True
    for model in TRAINED:
        params = stages.get(model, {}).get("params", {}).get(PARAMS, {}).get(model, {})
        sources = (params or {}).get("supervision", {}).get("sources", [])
        own = " and ".join(source["name"] for source in sources)
        if not own:
            continue
        if learned:  # it starts from the model before it
            same_start = _is_same(stages, TRAINED[0], model)
            own = f"{learned}, then {own}"
        learned = own
        evaluated = known and _is_same(stages, model, "evaluation")
        told[model] = (own if same_start else MISSING) if evaluated else OF_ANOTHER
    return told


def _is_same(stages: Mapping[str, Any], model: str, user: str) -> bool:
    """Return whether a stage has used the weights that dvc.lock has for the model."""
    weights = Path(f"data/{model}/model.safetensors")
    made = _md5(stages, model, "outs", weights)
    return made is not None and made == _md5(stages, user, "deps", weights)


def _md5(stages: Mapping[str, Any], stage: str, kind: str, path: Path) -> str | None:
    files = stages.get(stage, {}).get(kind, [])
    return next((file.get("md5") for file in files if file["path"] == path.as_posix()), None)


def results_table(
    results: dict[str, Any] | None, supervision: Mapping[str, str] | None = None
) -> str:
    """Return the results table of the paper, or a line that says there are none yet.

    It has one row per model and group of classes, one column per protocol and kind.
    """
    columns = [(protocol, kind) for protocol in PROTOCOLS for kind in KINDS]
    head = [f"{protocol} {KINDS[kind]}" for protocol, kind in columns]
    rows = [["model", "supervision", "classes", *head]]
    for model, own in (results or {}).items():
        for group in GROUPS if isinstance(own, dict) else ():
            groups = {protocol: own.get(protocol, {}).get(group) for protocol in PROTOCOLS}
            if any(found is not None for found in groups.values()):
                cells = [_percent((groups[protocol] or {}).get(kind)) for protocol, kind in columns]
                rows.append([model, (supervision or {}).get(model, MISSING), group, *cells])
    if len(rows) > 1:
        older = any(row[1] == OF_ANOTHER for row in rows)
        note = f"\n{OF_ANOTHER}: {HOW_TO_MEASURE}" * older
        return f"{TITLE}\n{align(rows, right=range(3, 7))}{note}"
    if not results:
        return f"No results yet: there is no {RESULTS}"
    told = [f"{model}: {own['skipped']}" for model, own in results.items() if "skipped" in own]
    return "\n".join([f"Nothing was measured, says {RESULTS}", *told])


def mean_and_spread(values: Sequence[float]) -> str:
    """Return mean ± sample standard deviation: one decimal above 1, three for fractions."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    digits = 1 if max(map(abs, values)) > 1 else 3
    return f"{statistics.fmean(values):.{digits}f} ± {deviation:.{digits}f}"


def _percent(metrics: dict[str, float | None] | None) -> str:
    values = [(metrics or {}).get(name) for name in ("AP50", "AP")]
    if values[0] is None:
        return MISSING
    return f"{values[0]:.1f}" + (f" ({values[1]:.1f})" if values[1] is not None else "")
