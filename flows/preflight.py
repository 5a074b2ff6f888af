"""See to it that an execution does not end hours later for a param or file that is wrong now."""

import subprocess
import sys
from pathlib import Path

from flows.graph import Status, Step


class Preflight:
    """A check of the params of all stages that are to run, in a process of its own.

    It takes two seconds, in which Prefect is loaded.
    """

    def __init__(self, root: Path, steps: list[Step]) -> None:
        """Begin to check."""
        due = [s.stage for s in steps if s.status in (Status.MUST_RUN, Status.UNKNOWN)]
        keys = {key.split(".")[0] for stage in due for key in stage.params}
        sections = sorted(k for k in keys if (root / "stages" / k / "params.py").is_file())
        command = [sys.executable, "-m", "stages.preflight", *sections]
        self._process = (
            subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True)
            if sections
            else None
        )

    def finish(self) -> None:
        """Wait for the end.

        Raises:
            ValueError: something is wrong; the message names key, file and fix of each.
        """
        if self._process:
            _, told = self._process.communicate()
            if self._process.returncode:
                raise ValueError(told.strip())
