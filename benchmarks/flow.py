"""What the flow costs compared with plain DVC: `python -m benchmarks.flow`.

It prints three tables. The first is the default DAG when all, one and no stages must run, also
compared with an ideal scheduler without overhead, from the stages' own seconds. The second is plans
and runs of many shards. The third is one sharded stage on one and on two real workers, with clones
of their own on this machine.

The commands are trivial (they write their outputs and wait), so only the overhead is measured.
`--real` measures a clone of this repository with its real stages instead, which takes as long as
several whole experiments.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.measure import medians, run, seconds_of, table
from benchmarks.project import (
    REPOSITORY,
    dvc,
    make_outputs,
    make_project,
    own_seconds,
    replace_param,
    sole_section,
    time_commands,
)
from flows.dvc.plan import make_plan
from flows.dvc.project import load_graph
from flows.environment import default_settings, stage_environment
from flows.graph import Graph, Status
from flows.resources import count_cores
from tests.support.loopback import Loopback, share_folder

FLOW = [sys.executable, "-m", "flows", "run"]


def ideal_seconds(graph: Graph, seconds: dict[str, float], cores: int) -> float:
    """Return when the last stage ends if starting one costs nothing.

    It follows the flow's rule: of the stages whose upstream is done, the first that fits into the
    free cores starts. Stages without seconds did not run.

    Args:
        graph: upstream first.
        seconds: what each stage took by itself.
        cores: the machine's cores.
    """
    waiting = [stage for name, stage in graph.items() if name in seconds]
    running: dict[str, float] = {}
    done = {name for name in graph if name not in seconds}
    now, free = 0.0, cores
    while waiting or running:
        for stage in list(waiting):
            wanted = min(stage.cores, cores)
            if done.issuperset(stage.needs) and wanted <= free:
                waiting.remove(stage)
                running[stage.name] = now + seconds[stage.name]
                free -= wanted
        ended = min(running, key=running.__getitem__)
        now = running.pop(ended)
        free += min(graph[ended].cores, cores)
        done.add(ended)
    return now


class Bench:
    """A project whose stages are run again and again, by DVC and by the flow."""

    def __init__(self, root: Path, graph: Graph) -> None:
        self.root = root
        self.graph = graph
        self.section = sole_section(graph)
        self.environment = _environment(root)
        self._value = 0

    def run(self, command: list[str]) -> float:
        """Return the seconds of a command in the project."""
        return run(command, self.root, **self.environment)[0]

    def compare(
        self, what: str, repeats: int, wanted: int, with_dvc: bool = True
    ) -> tuple[dict[str, float], float]:
        """Return the median seconds of DVC and flow, and of an ideal flow.

        Args:
            what: "all", "one" or "no" stages must run.
            repeats: runs of each; DVC and the flow take turns.
            wanted: the expected number of stages that run.
            with_dvc: if false, DVC is not measured.
        """
        commands = {"dvc": dvc("repro", "-q"), "flow": FLOW}
        if not with_dvc:
            del commands["dvc"]
        found: dict[str, list[float]] = {name: [] for name in (*commands, "ideal")}
        for _ in range(repeats):
            for name, command in commands.items():
                if what != "no":
                    self._value += 1
                    replace_param(self.root, "seed" if what == "all" else self.section, self._value)
                found[name].append(self.run(command))
                seconds = own_seconds(self.root)
                if len(seconds) != wanted:
                    raise RuntimeError(f"{wanted} stages should have run, {sorted(seconds)} did")
            found["ideal"].append(ideal_seconds(self.graph, seconds, count_cores()))
        middle = {name: median(values) for name, values in found.items()}
        return middle, middle["flow"] / middle["ideal"] if middle["ideal"] else 0.0


def compare_with_dvc(root: Path, options: argparse.Namespace) -> list[str]:
    """Return the tables of the default DAG."""
    bench = Bench(root, make_real(root) if options.real else make_project(root, "default", 4))
    if not options.real:
        (root / "work" / "seconds").write_text(f"{options.seconds}\n")
    bench.run(FLOW)  # creates databases, and runs all stages once
    own_seconds(root)
    rows = []
    for what, wanted in (("all", len(bench.graph)), ("one", 1), ("no", 0)):
        middle, over_ideal = bench.compare(what, options.repeats, wanted)
        rows.append(
            {
                "stages to run": f"{what} ({wanted})",
                "`dvc repro`": f"{middle['dvc']:.1f} s",
                "flow": f"{middle['flow']:.1f} s",
                "flow / `dvc repro`": f"{middle['flow'] / middle['dvc']:.2f}",
                "ideal on these cores": f"{middle['ideal']:.1f} s",
                "flow / ideal": f"{over_ideal:.2f}" if over_ideal else "–",
            }
        )
    status = medians({"status": lambda: bench.run(dvc("status", "-q"))}, options.repeats)["status"]
    ratio = middle["flow"] / status
    work = "the real stages" if options.real else f"commands that wait {options.seconds:g} s"
    return [
        table(f"Default DAG, {work}, medians of {options.repeats}", rows),
        f"A flow with nothing to do takes {ratio:.2f} × `dvc status` ({status:.2f} s).",
    ]


def many_shards(root: Path, options: argparse.Namespace) -> list[str]:
    """Return the table of one sharded stage, and of plans of the default DAG, by shards."""
    rows = []
    for shards in options.shards:
        folder = root / f"fan-{shards}"
        bench = Bench(folder, make_project(folder, "fan", shards))
        middle, _ = bench.compare("all", 1, shards + 2, with_dvc=shards <= options.dvc_shards)
        wide = root / f"default-{shards}"
        graph = make_project(wide, "default", shards)
        fresh = seconds_of(partial(_plan, wide, Status.MAY_RUN))
        make_outputs(wide)
        run(dvc("commit", "-f", "-q"), wide, **bench.environment)
        done = median(seconds_of(partial(_plan, wide, Status.UP_TO_DATE)) for _ in range(3))
        shutil.rmtree(wide / "data")
        lost = seconds_of(partial(_plan, wide, None))
        rows.append(
            {
                "shards": str(shards),
                "`dvc repro`": f"{middle['dvc']:.1f} s" if "dvc" in middle else "–",
                "flow": f"{middle['flow']:.1f} s",
                "flow / `dvc repro`": (
                    f"{middle['flow'] / middle['dvc']:.2f}" if "dvc" in middle else "–"
                ),
                "stages of the default DAG": str(len(graph)),
                "plan, nothing done": f"{fresh:.1f} s",
                "all up to date": f"{done:.1f} s",
                "results lost": f"{lost:.1f} s",
            }
        )
    return [table("One sharded stage of trivial work run cold; plans of the default DAG", rows)]


def on_workers(root: Path, options: argparse.Namespace) -> list[str]:
    """Return the table of one sharded stage in a local run, on one worker and on two.

    Commands only wait, so that workers do not compete for this machine's cores.
    """
    shards, wait = options.worker_shards, options.worker_seconds
    rows, alone = [], 0.0
    for count in (0, 1, 2):
        folder = root / f"workers-{count}"
        project = folder / "project"
        graph = make_project(project, "fan", shards, wait)
        ideal = ideal_seconds(graph, dict.fromkeys(graph, wait), count or count_cores())
        if count == 0:
            seconds = run(FLOW, project, **_environment(project))[0]
        else:
            share_folder(project)
            with Loopback(folder / "services") as fleet:
                fleet.make_pools(project)
                for number in range(count):
                    fleet.add_worker(project, f"worker{number}", "cpu")
                seconds = run([*FLOW, "--pools"], project, **fleet.environment)[0]
            alone = alone or seconds
        if (made := len(own_seconds(project))) != (0 if count else shards + 2):
            raise RuntimeError(f"{made} stages ran in {project}")
        rows.append(
            {
                "run by": f"{count} worker{'s' * (count > 1)}" if count else "a local run",
                "flow": f"{seconds:.0f} s",
                "ideal": f"{ideal:.0f} s",
                "flow / ideal": f"{seconds / ideal:.2f}",
                "of one worker's time": f"{seconds / alone:.2f}" if count else "–",
            }
        )
    title = f"One stage of {shards} shards between two others, commands that wait {wait:g} s"
    return [table(title, rows)]


def _environment(root: Path) -> dict[str, str]:
    return {**stage_environment(), **default_settings(root), "PYTHONPATH": str(REPOSITORY)}


def _plan(root: Path, expected: Status | None) -> None:
    last = make_plan(root)[-1].status
    if expected not in (None, last):
        raise RuntimeError(f"the last stage of {root} should be {expected}, it is {last}")


def make_real(root: Path) -> Graph:
    """Clone this repository's last commit, without results, and make its commands note times."""
    subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(root)], check=True)
    (root / "dvc.lock").unlink(missing_ok=True)
    time_commands(root)
    return load_graph(root, None)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flow", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the median is shown")
    parser.add_argument("--seconds", type=float, default=0.0, help="that each command waits")
    parser.add_argument("--shards", type=int, nargs="*", default=[16, 64, 256])
    parser.add_argument(
        "--dvc-shards", type=int, default=64, help="above so many `dvc repro` takes too long"
    )
    parser.add_argument("--worker-shards", type=int, default=8)
    parser.add_argument(
        "--worker-seconds", type=float, default=10.0, help="each command waits there"
    )
    parser.add_argument("--real", action="store_true", help="the real stages; takes hours")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ovis-benchmark-") as folder:
        for measure, place in (
            (compare_with_dvc, Path(folder, "default")),
            (many_shards, Path(folder)),
            (on_workers, Path(folder)),
        ):
            print("\n\n".join(measure(place, options)), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
