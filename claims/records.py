"""One record per seed, docs/claims/seed-<n>.json: every number that the claims compare.

A record identifies the experiment by a digest of the params that stages read (except those that
differ between seeds), of their commands and code, and of the locked packages. So each seed is
measured once, on any machine, and a table mixes different experiments only on request. A record
also has the hashes of the committed experiment's results, as they were then: it stays valid while
changed code gives the same. Processors round differently, so where dvc.lock is made on another one,
the record takes the hashes from there once its code has been seen to give them there. These hashes
tell nothing of the comparators and of the variants, so a record also has a digest of what decides
those alone. It is not checked for older records, which lack it.
"""

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from claims.comparisons import ARMS, FACTS, FILES, PIPELINE, seed_params
from flows.graph import overlap
from flows.overlay import flatten, load_yaml, look_up, read_params

FOLDER = Path("docs/claims")
DVC_FILES = ("dvc.yaml", PIPELINE)
LOCK = "requirements.lock"
OWN_CODE = "comparators/"
CODE = ("stages/", OWN_CODE)
# Suffixes of outputs with nothing but results. Weights, plots, metrics and reports also contain
# names of params and metrics, so a renaming changes their bytes.
RESULTS = {"", ".json", ".parquet"}  # "": folders of such files
NAMED = {"metrics.json", "report.json"}
RESTORE = "claims are measured in a whole checkout, so `git checkout` it"
TEMPLATE = re.compile(r"\$\{([\w.]+)\}")  # such as …/architectures/${detector.architecture}


@dataclass(frozen=True)
class Record:
    """The numbers of one seed.

    Attributes:
        seed: of the experiment.
        commit: HEAD when it was measured, with "+" if the code had uncommitted changes.
        digest: see `experiment_digest`.
        outputs: of the committed experiment then, see `committed_results`.
        facts: numbers by the paths of `claims.comparisons`.
        lock_commit: whose dvc.lock has `outputs`, if it is not `commit`: made on another processor,
            where code of the same results gives these.
        compared: see `compared_digest`; None in older records.
    """

    seed: int
    commit: str
    digest: str
    outputs: list[str] | None
    facts: dict[str, float]
    lock_commit: str | None = None
    compared: str | None = None


@dataclass(frozen=True)
class Experiment:
    """The experiment as it is now, for `is_usable`; attributes as those of `Record`."""

    digest: str
    outputs: list[str] | None
    compared: str


def experiment_digest(root: Path) -> str:
    """Return a digest of everything that determines a seed's numbers, except `seed_params`.

    Raises:
        ValueError: params.yaml, a dvc.yaml, the code of a stage or the lock of the packages cannot
            be read.
    """
    params = read_params(root)
    stages = {name: stage for file in DVC_FILES for name, stage in _all_members(root, file).items()}
    keys = _keys(stages)
    facts = [
        {
            key: value
            for key, value in flatten(params, ".")
            if key not in seed_params(0) and any(f"{key}.".startswith(f"{k}.") for k in keys)
        },
        {name: stage["cmd"] for name, stage in stages.items()},
        [ARMS, FILES],
    ]
    return _hash(root, facts, _code(root, stages.values(), params))


def compared_digest(root: Path) -> str:
    """Return a digest of what decides compared numbers and shows in no result of the experiment.

    It is of the variants, and of the comparators' commands, own params, code, and the params in
    their method.yaml. Raises as `experiment_digest`.
    """
    params, stages = read_params(root), _all_members(root, PIPELINE)
    keys = _keys(stages) - _keys(_all_members(root, DVC_FILES[0]))
    code = {path for path in _code(root, stages.values(), params) if path.startswith(OWN_CODE)}
    methods = sorted(path for path in code if path.endswith(".yaml"))
    facts = [
        ARMS,
        {name: stage["cmd"] for name, stage in stages.items()},
        {key: look_up(params, key) for key in keys},
        {path: load_yaml(YAML(typ="safe"), root / path, path).get("params") for path in methods},
    ]
    return _hash(root, facts, code.difference(methods))


def _hash(root: Path, facts: list[Any], paths: Iterable[str]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for path in sorted(set(paths)):
        digest.update(f"\n{path}\n".encode())
        try:
            content = (root / path).read_bytes()
        except OSError as error:
            raise ValueError(f"{path}: cannot be read: {error.strerror}; {RESTORE}") from None
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def read_experiment(root: Path) -> Experiment:
    """Return the experiment at `root`; raises as the functions that it calls."""
    return Experiment(experiment_digest(root), committed_results(root), compared_digest(root))


def read_stages(root: Path, file: str) -> dict[str, dict[str, Any]]:
    """Return the stages of a dvc.yaml as it is written.

    Raises:
        ValueError: it cannot be read, or has no stages.
    """
    try:
        content = load_yaml(YAML(typ="safe"), root / file, file)
    except ValueError as error:
        raise ValueError(f"{error}; {RESTORE}") from None
    stages = content.get("stages") if isinstance(content, dict) else None
    if not isinstance(stages, dict):
        raise ValueError(f"{file}: expected stages, found {content!r:.60}; {RESTORE}")
    return stages


def committed_results(root: Path) -> list[str] | None:
    """Return `results_of` dvc.lock.

    None if there is no dvc.lock, or if it belongs to other code or params than the current ones.

    Raises:
        RuntimeError: DVC failed.
    """
    lock = root / "dvc.lock"
    if not lock.is_file():
        return None
    command = [sys.executable, "-m", "dvc", "status", "--json", DVC_FILES[0]]
    told = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if told.returncode != 0:
        raise RuntimeError(f"dvc status: {told.stderr.strip()}")
    for changes in json.loads(told.stdout).values():
        for change in changes:
            if change == "changed command":
                return None
            deps = change.get("changed deps", {}) if isinstance(change, dict) else {}
            if any(not dep.startswith("data/") for dep in deps):
                return None
    yaml = YAML(typ="safe")
    known = read_stages(root, DVC_FILES[0])  # dvc.lock keeps stages that were removed
    stages = yaml.load(lock)["stages"].items()
    return results_of({"stages": {n: own for n, own in stages if n.partition("@")[0] in known}})


def results_of(lock: dict[str, Any]) -> list[str]:
    """Return the hashes of all results that the compared numbers are computed from, sorted.

    They are hashes alone, so stages, params and metrics may be renamed. Whatever is learned shows
    in the boxes, masks and predictions made with it, so weights are left out. So are results that
    only the comparators compute.

    Args:
        lock: the content of dvc.lock.
    """
    stages = [
        {key: stage.get(key, []) for key in ("deps", "outs")} for stage in lock["stages"].values()
    ]
    compared = {path for _, path in FILES.values()}
    wanted = {
        out["path"]
        for stage in stages
        if compared & {out["path"] for out in stage["outs"]}
        for out in stage["outs"]
    }
    found: dict[str, str] = {}
    while wanted:
        made = [
            (stage, out)
            for stage in stages
            for out in stage["outs"]
            if out["path"] not in found and any(overlap(out["path"], path) for path in wanted)
        ]
        found |= {out["path"]: out["md5"] for _, out in made}
        wanted = {dep["path"] for stage, _ in made for dep in stage["deps"]}
    outs = [(Path(path), md5) for path, md5 in found.items()]
    return sorted(md5 for path, md5 in outs if path.suffix in RESULTS and path.name not in NAMED)


def _all_members(root: Path, file: str) -> dict[str, dict[str, Any]]:
    stages = read_stages(root, file).items()
    return {f"{file}:{own}": one for stage in stages for own, one in _members(*stage)}


def _keys(stages: dict[str, dict[str, Any]]) -> set[str]:
    """Return the keys of params.yaml that the stages read."""
    return {key for stage in stages.values() for key in stage.get("params", [])}


def _members(name: str, stage: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (name, stage), or each member of a `foreach` stage."""
    if "foreach" not in stage:
        yield name, stage
        return
    for key, item in stage["foreach"].items():
        known = {"key": key, "item": item}

        def fill(text: str, known: dict[str, Any] = known) -> str:
            return TEMPLATE.sub(lambda m: str(look_up(known, m[1]) or m[0]), text)

        own = stage["do"]
        yield f"{name}@{key}", {**own, "cmd": fill(own["cmd"]), "deps": [*map(fill, own["deps"])]}


def _code(root: Path, stages: Iterable[dict[str, Any]], params: dict[str, Any]) -> Iterator[str]:
    """Yield the paths of the packages' lock and of the source files among the stages' deps."""
    yield LOCK
    for stage in stages:
        for dep in stage.get("deps", []):
            if not dep.startswith(CODE):
                continue
            path = TEMPLATE.sub(lambda match: str(look_up(params, match[1])), dep)
            if (root / path).is_dir():
                found = (root / path).rglob("*")
                files = (file for file in found if file.suffix in (".py", ".yaml"))
                yield from (file.relative_to(root).as_posix() for file in files)
            else:
                yield path


def read_facts(folders: dict[str, Path]) -> dict[str, float]:
    """Return the numbers of one seed from the metrics files in the folders of its arms.

    Raises:
        KeyError: a number is missing in its file.
        ValueError: a value is not a number.
    """
    files = {
        name: json.loads((folders[arm] / path).read_text(encoding="utf-8"))
        for name, (arm, path) in FILES.items()
    }
    facts = {}
    for fact in FACTS:
        value: Any = files
        for key in fact.split("."):
            value = value[key]
        if not isinstance(value, int | float):
            name = fact.partition(".")[0]
            raise ValueError(f"{FILES[name][1]}: {fact} is {value}; nothing to measure it on?")
        facts[fact] = float(value)
    return facts


def write_record(root: Path, record: Record) -> Path:
    """Write a record atomically, in place of an older one of its seed; return its path."""
    path = root / FOLDER / f"seed-{record.seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def read_records(root: Path) -> list[Record]:
    """Return the records of all seeds, in the order of the seeds.

    Raises:
        ValueError: a file is not a record.
    """
    records = []
    for path in (root / FOLDER).glob("seed-*.json"):
        try:
            records.append(Record(**json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: not a record of a seed ({error}); remove it") from error
    return sorted(records, key=lambda record: record.seed)


def is_usable(record: Record, now: Experiment, accept_older: bool) -> bool:
    """Return whether a table may use a record: of this experiment, or older if accepted.

    A record that lacks one of `FACTS` is never usable.
    """
    same = record.digest == now.digest
    if now.outputs is not None and record.outputs is not None:
        alike = record.compared in (None, now.compared)
        same = same or (alike and not Counter(record.outputs) - Counter(now.outputs))
    return (accept_older or same) and record.facts.keys() >= set(FACTS)
