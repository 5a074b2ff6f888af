"""Workers of the toy project without Prefect: clones that do a worker's work in this process."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from flows.dvc.plan import make_plan
from flows.dvc.project import load_graph
from flows.dvc.records import sort_lock
from flows.dvc.remote import RemoteError, elsewhere, result_key
from flows.graph import DagError, Outcome, Status
from flows.workers.coordinator import Fleet
from flows.workers.dispatch import LostError
from flows.workers.request import Request, make_request, take_snapshot
from flows.workers.space import UnfitError
from flows.workers.stage_flow import reproduce
from tests.support.loopback import clone_beside, share_folder
from tests.support.toy import Toy


@dataclass
class Workers:
    """A dispatcher whose clones take turns; `upset` may break something before each request.

    An unfit clone leaves, as its worker would, and the next one takes its turn.
    """

    clones: list[Path]
    upset: Callable[[Request, int], None] = lambda request, attempt: None
    asked: list[str] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def make(self, request: Request, pool: str, log: Callable, look: Callable) -> Outcome:
        while self.clones:
            self.upset(request, self.asked.count(request.stage))
            clone = self.clones.pop(0)
            self.clones.append(clone)
            self.asked.append(request.stage)
            try:
                return reproduce(clone, request, f"run-{len(self.asked)}", self.logged.append)
            except UnfitError as error:
                self.clones.remove(clone)
                self.left.append(f"{clone.name}: {error}")
            except (RemoteError, DagError) as error:
                raise LostError(f"on {clone.name}: {error}") from error
        raise LostError(f"nobody is left: {self.left}")

    def stop(self) -> None:
        raise AssertionError("nobody stops these")


def make_fleet(toy: Toy, count: int = 1) -> Workers:
    """Give the toy a shared folder as its remote, and clones whose origin is the toy."""
    share_folder(toy.root)
    return Workers([clone_beside(toy.root, f"worker{number}") for number in range(count)])


def store(toy: Toy) -> Path:
    return toy.root.parent / "store"


def clone_of(toy: Toy, name: str) -> Toy:
    return Toy(clone_beside(toy.root, name))


def run_on(workers: Workers, toy: Toy, *targets: str) -> dict[str, str]:
    """Make the stages as the flow does, but one after the other; return stage → outcome.

    The first failure raises.
    """
    fleet, outcomes = Fleet(toy.root, workers), {}
    for step in make_plan(toy.root, list(targets) or None, elsewhere(toy.root, True)):
        if step.status is not Status.UP_TO_DATE:
            outcome = fleet.run(step.stage, 0, workers.logged.append)
            outcomes[step.stage.name] = outcome.outcome
    sort_lock(toy.root)
    return outcomes


def request_for(toy: Toy, name: str) -> Request:
    """Return the coordinator's request for the stage, once everything upstream is made."""
    graph = load_graph(toy.root)
    key = result_key(toy.root, name, graph[name].needs)
    snapshot = take_snapshot(toy.root, graph)
    return make_request(toy.root, graph, graph[name], key, snapshot)
