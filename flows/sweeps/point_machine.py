"""A point's worktree in execution: it restores what its stages need, no sooner than they do."""

import threading
from collections.abc import Callable, Iterable

from flows.cores import CoreBudget
from flows.graph import Stage, Status
from flows.machine import Machine
from flows.stage import Outcome
from flows.sweeps.in_flight import InFlight
from flows.sweeps.plan import PlannedPoint, content_key


class PointMachine(Machine):
    """Runs the stages that the point owns, on cores that all points share."""

    def __init__(self, planned: PlannedPoint, budget: CoreBudget, in_flight: InFlight) -> None:
        """Show output behind the point's name."""
        super().__init__(planned.folder, budget, label=f"{planned.point.name} ")
        self.planned = planned
        self.restored: dict[str, Outcome] = {}
        self._stages = {step.stage.name: step.stage for step in planned.steps}
        self._here = {s.stage.name for s in planned.steps if s.status is Status.UP_TO_DATE}
        self._restoring = threading.Lock()
        self._in_flight = in_flight

    def run(self, stage: Stage, order: int, log: Callable[[str], None]) -> Outcome:
        """Restore what the stage needs, and run it unless an equal one runs in another point.

        In that case wait for its end, after which DVC finds the result in the run cache.

        Raises:
            StageFailedError: the stage failed, or was stopped.
        """
        self.restore(self._upstream_of(stage), order)
        with self._in_flight.hold(content_key(self.planned.folder, stage)):
            outcome = super().run(stage, order, log)
        self._here.add(stage.name)
        return outcome

    def restore(self, names: Iterable[str], order: int = 0) -> None:
        """Take out of the cache what is not here yet.

        Raises:
            StageFailedError: it was not there and failed when it was made, or all were stopped.
        """
        names = set(names)
        with self._restoring:
            missing = [
                stage
                for name, stage in self._stages.items()
                if name in names and name not in self._here
            ]
            if missing:
                with self._cores("restore", 1, order):
                    outcomes = self.runner.restore(missing)
                self.restored.update((outcome.stage, outcome) for outcome in outcomes)
                self._here.update(stage.name for stage in missing)

    def _upstream_of(self, stage: Stage) -> set[str]:
        names = set(stage.needs)
        for name in reversed(self._stages):  # downstream first, so one pass reaches all
            if name in names:
                names.update(self._stages[name].needs)
        return names
