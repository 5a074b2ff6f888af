"""The commands of `ovis-dag <command>`, or `python -m flows <command>`.

Exit codes: 0 done, 1 failed, 2 bad input, 130 stopped. A command imports what it needs when it
runs: DVC takes 0.7 s, Prefect and MLflow 5 s, Prefect's server 10 s.
"""

import errno
import os
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

PROGRAM = "ovis-dag"
COMPLETE = "_OVIS_DAG_COMPLETE"  # variable by which a shell asks click for completions
STOPPED = 130
FIXES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EROFS: "take a checkout that can be written",
    errno.EACCES: "take a checkout that this user can write",
    errno.EPERM: "take a checkout that this user can write",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the process's exit code."""
    try:
        return app(arguments, prog_name=PROGRAM, standalone_mode=False, complete_var=COMPLETE) or 0
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else PROGRAM
        return _tell(f"{error.format_message().rstrip('.')}; see {command} --help", 2)
    except click.Abort:
        return _tell("stopped; run the same again to go on from here", STOPPED)
    except ValueError as error:
        return _tell(error, 2)
    except RuntimeError as error:
        return _tell(error, 1)
    except OSError as error:
        if error.errno not in FIXES:
            raise
        return _tell(f"{error}; {FIXES[error.errno]} and run the same again", 1)


def _tell(what: object, code: int) -> int:
    print(f"{PROGRAM}: {what}", file=sys.stderr)
    return code


def _project(anywhere: bool = False) -> Path:
    """Return this folder, the project, after its settings were put into the environment.

    Raises:
        ValueError: it is no project, which only a command that works `anywhere` accepts; or it is
            another one than that of this code, or one without params.yaml.
    """
    from flows.environment import apply_settings

    root, code = Path.cwd(), Path(__file__).parent
    if (root / code.name).is_dir() and not code.samefile(root / code.name):
        raise ValueError(
            f"{root} has code of its own, and this command runs that of {code.parent}; run"
            " `python -m flows` here, or `pip install -e .`"
        )
    if not anywhere and not (root / "dvc.yaml").is_file():
        above = next((up for up in root.parents if (up / "dvc.yaml").is_file()), "a clone of it")
        raise ValueError(f"{root}: has no dvc.yaml; run from the repository's root, {above}")
    if (root / "dvc.yaml").is_file() and not (root / "params.yaml").exists():
        raise ValueError("params.yaml: is missing; `git checkout params.yaml` brings it back")
    apply_settings(root)
    return root


def _complete(
    names: Callable[[], Iterable[str]],
) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return a completion of words by names that are read when a shell asks."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        try:
            return [name for name in names() if name.startswith(incomplete)]
        except Exception:  # such as a broken file: an error would garble the line being typed
            return []

    return complete


def _stages() -> Iterable[str]:
    from ruamel.yaml import YAML

    return YAML(typ="safe").load(Path("dvc.yaml"))["stages"]


def _profiles() -> Iterable[str]:
    return sorted(path.stem for path in Path("experiments").glob("*.yaml"))


def _params() -> Iterable[str]:
    from flows.overlay import flatten, read_params

    return [f"{key}=" for key, _ in flatten(read_params(Path()), ".")]


def _without_cores(context: click.Context, parameter: click.Parameter, pools: bool) -> bool:
    if pools and context.params.get("cores"):
        raise click.UsageError("--cores has no effect with --pools: workers use their own cores")
    return pools


targets_argument = click.argument("targets", nargs=-1, shell_complete=_complete(_stages))
COUNT = click.IntRange(min=1)
# Eager options are read first, wherever they are given.
cores_option = click.option(
    "--cores", type=COUNT, is_eager=True, help="Cores to keep busy; all by default."
)
pools_option = click.option(
    "--pools", is_flag=True, callback=_without_cores, help="Run stages on workers, not here."
)


class _InOrder(click.Group):
    """Lists its commands in the order below: what everyone needs comes first."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_InOrder, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name=PROGRAM)
def app() -> None:
    """Mask-free OVIS as a reproducible experiment."""


@app.command()
@targets_argument
@cores_option
@pools_option
def run(targets: tuple[str, ...], cores: int | None, pools: bool) -> int:
    """Run whatever is not up to date.

    TARGETS are stages, with all that they need; all by default.
    """
    root = _project()
    from flows.execution import execute

    return int(not execute(root, list(targets) or None, cores, pools))


@app.command()
@targets_argument
@pools_option
def plan(targets: tuple[str, ...], pools: bool) -> None:
    """Say what a run would do, and why; run nothing.

    TARGETS are stages, with all that they need; all by default.
    """
    root = _project()
    from flows.dvc.plan import make_plan
    from flows.dvc.remote import elsewhere
    from flows.stage import preflight
    from flows.table import plan_table, summarize_plan

    steps = make_plan(root, list(targets) or None, elsewhere(root, pools))
    preflight({root: steps}, pools)()
    print(plan_table(steps))
    print("\n" + summarize_plan(steps))


@app.command()
@click.argument("name", shell_complete=_complete(_profiles))
def profile(name: str) -> None:
    """Merge experiments/NAME.yaml into params.yaml."""
    root = _project()
    from flows.overlay import apply_profile

    for change in apply_profile(root, name):
        print(change)
    print("`git checkout params.yaml` takes the default back")


@app.command()
@click.option("--mirror", metavar="FOLDER|ADDRESS", help="That has the same files.")
@click.option("--workers", type=click.IntRange(1, 128), help="Images at once; 32 by default.")
def fetch(**options: Any) -> None:
    """Fetch the COCO or Open Images files that params.yaml wants."""
    _project()
    _become_module("fetch", **options)


@app.command()
@click.argument("images", type=click.Path())
@click.option("--names", help="Comma-separated; those of the training by default.")
@click.option(
    "--model",
    help="finetune, detector, a folder, or an MLflow URI; the best there is by default.",
    shell_complete=_complete(lambda: ("finetune", "detector")),
)
@click.option("--output", type=click.Path(), help="Folder; data/predict by default.")
@click.option(
    "--min-score",
    type=click.FloatRange(0, 1),
    help="Of a shown instance; 0.3 by default, and never below what the model finds.",
)
@click.option("--allow-unknown", is_flag=True, help="Only warn of words the model never read.")
@click.option("--no-overlays", is_flag=True, help="Write predictions.json alone.")
def predict(images: str, model: str | None, **options: Any) -> None:
    """Find and outline objects of any names in new images.

    IMAGES is an image, or a folder of them.
    """
    root = _project(anywhere=model is not None)
    from flows.predictor import find

    _become_module("predict", images, model=find(root, model), **options)


def _become_module(module: str, *arguments: str, **options: Any) -> None:
    """Replace this process by `python -m module` with the options that are given."""
    command = ["-m", module, *arguments]
    for name, value in options.items():
        if value is not None and value is not False:
            option = f"--{name.replace('_', '-')}"
            command.append(option if value is True else f"{option}={value}")
    os.execv(sys.executable, [sys.executable, *command])


@app.command()
@targets_argument
@click.option(
    "-S",
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE,VALUE",
    help="One axis; KEY,KEY=VALUE,VALUE changes several params together.",
    shell_complete=_complete(_params),
)
@click.option(
    "--points",
    type=click.Path(path_type=Path),
    help="YAML list of points: params and values, perhaps `extends: profile` and a `name`.",
)
@click.option("--name", help="Of the sweep; by default that of the file of points, or the params.")
@click.option("--plan", "only_plan", is_flag=True, help="Only say what would run.")
@click.option(
    "--over", multiple=True, help="Param over which mean and spread are taken; seed by default."
)
@click.option(
    "--metric", "metrics", multiple=True, help="Pattern such as 'evaluation/*/novel/*/AP50'."
)
@click.option("--against", help="Name of the row to compare all others with; by default the first.")
@click.option("--best", help="Metric of which the best point is looked for.")
@click.option(
    "--direction", type=click.Choice(["max", "min"]), help="Which value is best; max by default."
)
@cores_option
@pools_option
def sweep(
    targets: tuple[str, ...],
    settings: tuple[str, ...],
    points: Path | None,
    name: str | None,
    only_plan: bool,
    cores: int | None,
    pools: bool,
    **asked: Any,
) -> int:
    """Compare params: run a grid of points, shared stages once.

    TARGETS are stages, with all that they need; all by default.
    """
    root = _project()
    from flows.execution import mlflow_page, require_fleet
    from flows.sweeps.plan import preview, results_folder, run_points
    from flows.sweeps.points import make_points, sweep_name
    from flows.sweeps.report import Question, check_question, count_outcomes

    grid = make_points(root, settings, points, targets or None)
    question = Question(**{key: value for key, value in asked.items() if value})
    check_question(grid, question)
    if pools:
        require_fleet(root)
    if only_plan:
        planned = preview(root, grid, pools)
        print(f"{planned.table()}\n\n{planned.summary()}")
        return 0
    title = sweep_name(grid, name or (points.stem if points else None))
    results = run_points(root, title, grid, cores, question, pools)
    print(f"\n{count_outcomes(results)}\nAll of it  {results_folder(root, title)}")
    print(f"Metrics    {mlflow_page()}; `dvc exp show` has the points too")
    return int(any(result.failed for result in results))


@app.command()
@click.argument("seeds", nargs=-1, type=click.IntRange(min=0))
@click.option("--table", is_flag=True, help="Measure nothing: the table of what is measured.")
@click.option(
    "--accept-older", is_flag=True, help="Count records of other params, code or packages, too."
)
@cores_option
@pools_option
def claims(
    seeds: tuple[int, ...], table: bool, accept_older: bool, cores: int | None, pools: bool
) -> None:
    """Measure the claims, each seed once, into docs/claims.

    SEEDS are 1 2 3 by default.
    """
    if seeds and table:
        raise click.UsageError("--table measures no seeds")
    root = _project()
    from claims.measure import measure_claims

    if pools:
        from flows.execution import require_fleet

        require_fleet(root)
    measured = [] if table else list(seeds) or [1, 2, 3]
    print(measure_claims(root, measured, cores, accept_older, pools))


@app.command()
def verify() -> int:
    """Hash all results and their copies; compare with dvc.lock."""
    root = _project()
    from flows.dvc.records import find_damage
    from flows.table import counted

    count, damage = find_damage(root)
    print("\n".join(damage) or f"dvc.lock: {counted(count, 'output')}, all as it says")
    return int(bool(damage))


@app.command()
def readme() -> None:
    """Write the generated tables of README.md and docs/."""
    root = _project()
    from claims.readme import write_readme

    print(f"Tables: {', '.join(write_readme(root)) or 'nothing'} changed")


@app.command()
def schema() -> None:
    """Write the schemas of params.yaml and profiles, and their page."""
    _project()
    _become_module("stages.schema")


@app.command()
def pools() -> None:
    """Make work pools and deployments on a Prefect server."""
    root = _project()
    from flows.workers.pools import make_pools

    print("\n".join(make_pools(root)))


@app.command()
@click.option("--pool", required=True, help="cpu, gpu or experiment.")
@click.option("--name", help="As shown in Prefect; by default host, pool and PID.")
@click.option("--stages", type=COUNT, help="How many at once.")
def worker(pool: str, name: str | None, stages: int | None) -> None:
    """Run stages of one pool in this clone until it is stopped."""
    root = _project()
    from flows.environment import apply_worker_settings

    name = name or f"{socket.gethostname()}-{pool}-{os.getpid()}"
    apply_worker_settings(root, name)
    from flows.workers.worker import run_worker

    run_worker(root, pool, name, stages)


@app.command()
def ui() -> None:
    """Open the MLflow page on http://127.0.0.1:5000."""
    _project()
    from flows.environment import without_user
    from flows.execution import is_server

    if is_server(uri := os.environ["MLFLOW_TRACKING_URI"]):
        told = without_user(uri)
        raise ValueError(f"MLFLOW_TRACKING_URI={told}: this server has the page; open it there")
    _become_module("mlflow", "ui", "--host=127.0.0.1", "--port=5000", f"--backend-store-uri={uri}")


@app.command()
def prefect() -> None:
    """Open Prefect's pages on http://127.0.0.1:4200."""
    _project()
    _become_module("prefect", "server", "start", "--host=127.0.0.1", "--port=4200")


@app.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the code that makes SHELL complete this command."""
    from click.shell_completion import get_completion_class

    if script := get_completion_class(shell):
        print(script(app, {}, PROGRAM, COMPLETE).source())
