"""`main` of the stage wspn for tests: it writes the losses of each step, and can be killed."""

import os

from stages.common.runtime.curves import Curve
from stages.wspn import __main__ as stage


class KilledError(Exception):
    pass


class EachStep(Curve):
    """Has a row for each step, and kills the training at the end of step KILLED_AT, if set."""

    def __init__(self, every, growing=None):
        super().__init__(1, growing)

    def add(self, step, **scalars):
        if str(step) == os.environ.get("KILLED_AT"):
            raise KilledError
        return super().add(step, **scalars)


def main() -> None:
    stage.Curve = EachStep
    if "KILLED_AT" in os.environ:
        stage.SECONDS_BETWEEN = 0.0
    stage.main()
