"""What the environment must say so that Prefect, DVC and MLflow stay on this machine and quiet.

Every setting is a default: what the user's environment already says wins, and of Prefect's server
what the active profile says (`prefect cloud login`, `prefect config set`).
"""

import os
import sys
import tomllib
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
    settings = default_settings(root)
    if url := _server_of_profile():
        del settings["PREFECT_HOME"]  # where Prefect finds the profile, with its keys
        settings["PREFECT_API_URL"] = url
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def _server_of_profile() -> str | None:
    """Return the address of a server that the user's active profile has, if it has one.

    Not by Prefect's settings: importing them takes longer than `plan` does.
    """
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    path = Path(os.environ.get("PREFECT_PROFILES_PATH", home / "profiles.toml"))
    if not path.is_file():
        return None
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}; mend or remove it") from error
    name = os.environ.get("PREFECT_PROFILE", content.get("active"))
    return content.get("profiles", {}).get(name, {}).get("PREFECT_API_URL")


def stage_environment() -> dict[str, str]:
    """Return the environment of a stage: `python` is this one, activated or not, and unbuffered."""
    folder = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{path}", "PYTHONUNBUFFERED": "1"}
