"""Measure the claims: `make claims SEEDS="1 2 3"`.

For each seed, one sweep runs the experiment with its comparators and its variants, so that nothing
is computed twice. Then the seed's record is written. A run that was killed continues with the first
seed without a record.
"""

from pathlib import Path

from claims.comparisons import ARMS, PIPELINE, seed_params
from claims.records import (
    FOLDER,
    Record,
    compared_digest,
    experiment_digest,
    is_usable,
    read_experiment,
    read_facts,
    read_records,
    read_stages,
    write_record,
)
from claims.table import claims_page
from flows.git import git
from flows.sweeps.plan import run_points, worktree
from flows.sweeps.points import Point, point_name

TABLE = FOLDER / "table.md"


def measure_claims(
    root: Path,
    seeds: list[int],
    cores: int | None = None,
    accept_older: bool = False,
    pools: bool = False,
) -> str:
    """Measure the seeds that have no record yet, write docs/claims/table.md and return it.

    Args:
        root: the repository.
        seeds: the seeds to measure; the table has all seeds with a usable record.
        cores: number of cores to use; None uses all.
        accept_older: also accept records of other params, code or packages.
        pools: run stages on workers instead of here.

    Raises:
        RuntimeError: a run of a seed failed; finished results stay.
        ValueError: there is no usable record for the table.
    """
    for seed in seeds:
        known = {record.seed: record for record in read_records(root)}
        if seed in known and is_usable(known[seed], read_experiment(root), accept_older):
            print(f"claims: seed {seed} was measured at commit {known[seed].commit}", flush=True)
            continue
        record = _measure(root, seed, cores, pools)
        print(f"claims: {write_record(root, record).relative_to(root)} written", flush=True)
    return write_table(root, accept_older)


def write_table(root: Path, accept_older: bool = False) -> str:
    """Write the table of all usable records to docs/claims/table.md, and return it.

    Raises:
        ValueError: there is no usable record.
    """
    records, now = read_records(root), read_experiment(root)
    used = [record for record in records if is_usable(record, now, accept_older)]
    if not used:
        raise ValueError(
            f"{FOLDER}: no record of the experiment as it is now, out of {len(records)};"
            " `make claims` measures it, and OPTIONS=--accept-older takes older ones"
        )
    table = claims_page(used, [record for record in records if record not in used])
    (root / TABLE).write_text(table + "\n", encoding="utf-8")
    return table


def _measure(root: Path, seed: int, cores: int | None, pools: bool) -> Record:
    points, commit = seed_points(root, seed), _commit(root)
    results = run_points(root, f"claims-seed-{seed}", list(points.values()), cores, pools=pools)
    failed = [result.point.name for result in results if result.failed]
    if failed:
        raise RuntimeError(f"{', '.join(failed)} failed; mend it and run `make claims` again")
    folders = {arm: worktree(root, point) for arm, point in points.items()}
    # Of the worktree that ran: the workspace, which has dvc.lock, may have changed since.
    ran, now = folders["own"], read_experiment(root)
    digest, compared = experiment_digest(ran), compared_digest(ran)
    outputs = now.outputs if digest == now.digest else None
    return Record(seed, commit, digest, outputs, read_facts(folders), compared=compared)


def seed_points(root: Path, seed: int) -> dict[str, Point]:
    """Return arm → sweep point of a seed, for the experiment and its variants."""
    compared = tuple(f"{PIPELINE}:{name}" for name in read_stages(root, PIPELINE))
    targets = {"own": ("label_quality", "evaluation", *compared)}
    points = {}
    for arm, changes in ARMS.items():
        values = {**seed_params(seed), **changes}
        points[arm] = Point(point_name(values), values, targets.get(arm, ("label_quality",)))
    return points


def _commit(root: Path) -> str:
    """Return HEAD, with "+" if there are uncommitted changes to anything but the records."""
    head = git(root, "rev-parse", "--short=12", "HEAD")
    changed = git(root, "status", "--porcelain", "--", ".", f":(exclude){FOLDER.as_posix()}")
    return f"{head}+" if changed else head
