"""The graph of stages as plain values, for flows and tests, without DVC.

A graph is a mapping from stage name to `Stage`, upstream first. A sharded stage is several entries
(`pseudo_boxes@0`, `pseudo_boxes@1` …) of one group (`pseudo_boxes`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

SHOWN = (".csv", ".jpg", ".png", ".svg", "/report.json")  # ends of outputs that people look at
MODELS = ("finetune", "detector")  # stages that make a predictor, the usual choice first
PREDICTOR = {  # its files, and the outputs that they are
    "detector.safetensors": "data/{model}/model.safetensors",
    "text_encoder.safetensors": "data/vlm/model.safetensors",
    "categories.json": "data/download/categories.json",
}
USED = {path.format(model=model) for path in PREDICTOR.values() for model in MODELS}


@dataclass(frozen=True)
class Stage:
    """One stage, or one shard of it; paths are relative to the repository's root, with `/`."""

    name: str  # as `dvc repro` takes it
    group: str
    command: str
    needs: tuple[str, ...]  # names of the stages directly upstream
    inputs: tuple[str, ...]  # files it depends on: data and source code
    params: tuple[str, ...]  # keys of params.yaml, such as "pseudo_boxes" or "wspn.rounds"
    outputs: tuple[str, ...]  # every output, including metrics and plots
    metrics: tuple[str, ...]
    plots: tuple[str, ...]
    cores: int
    pool: str  # the work pool whose machines may run it: cpu or gpu
    gpus: int = 0  # CUDA devices that it takes if there are any

    @property
    def shown(self) -> list[str]:
        """Return the outputs that people look at: metrics, plots, tables, images, reports."""
        ends = [path for path in self.outputs if path.endswith(SHOWN)]
        return list(dict.fromkeys((*self.metrics, *self.plots, *ends)))

    @property
    def curves(self) -> list[str]:
        """Return the plots that may grow while the stage runs."""
        return [path for path in self.plots if path.endswith(".csv")]

    @property
    def brought(self) -> set[str]:
        """Return the outputs that a coordinator brings here: what is shown, and predictors."""
        return {*self.shown, *USED.intersection(self.outputs)}


Graph = dict[str, Stage]


class DagError(ValueError):
    """The graph cannot be read; the message says what to fix."""


# Reasons of a step that do not come from a person's change.
NEVER_RAN, CHANGES_UPSTREAM = "dvc.lock has no run of it", "changes upstream"
ABSENT = ("is missing", "is not in cache")  # an output; in the plan's words


class Status(StrEnum):
    """What the next execution will do with a stage."""

    UP_TO_DATE = "up to date"
    RESTORABLE = "restorable"
    MUST_RUN = "must run"
    MAY_RUN = "may run"


@dataclass(frozen=True)
class Step:
    """A stage of a plan: its status, and why."""

    stage: Stage
    status: Status
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: executed, restored, unchanged, failed, or not run.

    `made` says how it was executed: device, its model, torch, threads, worker, seconds.
    """

    stage: str
    group: str
    outcome: str
    seconds: float = 0.0
    message: str = ""
    made: Mapping[str, str | float] = field(default_factory=dict, compare=False)


UNDONE = ("failed", "not run")  # outcomes without a result


def unchanged(steps: Iterable[Step]) -> list[Outcome]:
    """Return the outcomes of an execution with nothing to do."""
    return [Outcome(step.stage.name, step.stage.group, "unchanged") for step in steps]


def select(graph: Graph, targets: Iterable[str] | None) -> Graph:
    """Return the targets (names or groups) and everything upstream of them.

    The default is all stages of the repository's main dvc.yaml. Stages of another one, named
    "<folder>/dvc.yaml:<name>", run only if they are targets.

    Raises:
        ValueError: there is no such stage.
    """
    if targets is None:
        return {name: stage for name, stage in graph.items() if ":" not in name}
    wanted: set[str] = set()
    for target in targets:
        names = [name for name, stage in graph.items() if target in (name, stage.group)]
        if not names:
            groups = ", ".join(dict.fromkeys(stage.group for stage in graph.values()))
            raise ValueError(f"dvc.yaml: there is no stage '{target}'; there are: {groups}")
        wanted.update(names)
    for name in reversed(graph):  # downstream first, so one pass reaches everything upstream
        if name in wanted:
            wanted.update(graph[name].needs)
    return {name: stage for name, stage in graph.items() if name in wanted}


def overlap(path: str, other: str) -> bool:
    """Say whether two paths with `/` are equal or one is a folder that holds the other."""
    return path == other or path.startswith(other + "/") or other.startswith(path + "/")
