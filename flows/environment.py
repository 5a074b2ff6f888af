"""What the environment must say so that Prefect, DVC and MLflow stay on this machine and quiet.

Every setting is a default: what the user's environment already says wins.
"""

import os
import sys
from pathlib import Path

STATE_FOLDER = ".flows"  # logs, times and locks of this machine; git and DVC ignore it
DATABASE = "mlflow.db"


def default_settings(root: Path) -> dict[str, str]:
    """Return the defaults for a project at `root`."""
    return {
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "GIT_PYTHON_REFRESH": "quiet",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_TRACKING_URI": f"sqlite:///{root / DATABASE}",
        "PREFECT_HOME": str(root / ".prefect"),
        # DO_NOT_TRACK alone leaves the server's heartbeat on.
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
        # Stage output goes to the server's log at INFO; the terminal has it from the runner itself.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    }


def apply_settings(root: Path) -> None:
    """Put the defaults into this process's environment, before Prefect or MLflow is imported."""
    for name, value in default_settings(root).items():
        os.environ.setdefault(name, value)


def stage_environment() -> dict[str, str]:
    """Return the environment of a stage: `python` is this one, activated or not, and unbuffered."""
    folder = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{path}", "PYTHONUNBUFFERED": "1"}
