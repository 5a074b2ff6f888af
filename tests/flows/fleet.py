"""Agents of the toy project without Prefect: a dispatcher that lets clones in this process work."""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from toy import Toy

from flows.agents.agent import UnfitError, reproduce
from flows.agents.coordinator import Fleet, LostError
from flows.agents.request import Request
from flows.dag import load_graph, make_plan, sort_lock
from flows.graph import Status
from flows.stage import Outcome


@dataclass
class Agents:
    """Clones that take turns; before each request `upset` may break something."""

    clones: list[Path]
    upset: Callable[[Request, int], None] = lambda request, attempt: None
    made: list[str] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)

    def make(self, request: Request, pool: str, attempt: int, log) -> Outcome:
        self.upset(request, attempt)
        clone = self.clones[(len(self.made) + attempt) % len(self.clones)]
        self.made.append(request.stage)
        name = f"{request.stage}-{len(self.made)}"
        try:
            return reproduce(clone, request, name, self.logged.append)
        except UnfitError as error:
            raise LostError(str(error)) from error

    def stop(self) -> None:
        pass


def make_fleet(toy: Toy, count: int = 2) -> Agents:
    """Give the toy a shared folder as remote, and clones that have it as origin."""
    store = toy.root.parent / "store"
    store.mkdir()
    toy.dvc("remote", "add", "--quiet", "--local", "--default", "store", str(store))
    return Agents([make_clone(toy, f"agent{k}") for k in range(count)])


def make_clone(toy: Toy, name: str) -> Path:
    clone = toy.root.parent / name
    subprocess.run(["git", "clone", "--quiet", str(toy.root), str(clone)], check=True)
    shutil.copy(toy.root / ".dvc/config.local", clone / ".dvc/config.local")
    return clone


def run_all(toy: Toy, agents: Agents, targets: list[str] | None = None) -> dict[str, Outcome]:
    """Do what the flow does, one stage after the other; the first failure raises."""
    fleet = Fleet(toy.root, agents)
    outcomes = {}
    for step in make_plan(toy.root, targets):
        if step.status is not Status.UP_TO_DATE:
            outcomes[step.stage.name] = fleet.run(step.stage, 0, agents.logged.append)
    sort_lock(toy.root)
    return outcomes


def ran(agents: Agents) -> dict[str, int]:
    """Return how often each stage executed, on whichever agent."""
    raise NotImplementedError


def stage(toy: Toy, name: str):
    return load_graph(toy.root)[name]
