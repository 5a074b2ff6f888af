"""What the environment must say so that Prefect, DVC and MLflow stay on this machine and quiet.

Every setting is a default: what the user's environment already says wins, and of Prefect's server
what the active profile says (`prefect cloud login`, `prefect config set`).
"""

import io
import os
import re
import sys
import tomllib
from pathlib import Path
from urllib.parse import unquote

STATE_FOLDER = ".flows"  # logs, times and locks of this machine; git and DVC ignore it
DATABASE = "mlflow.db"
STOP_ORPHANS = "OVIS_STOP_ORPHANS"  # =1: what a lost flow ran is stopped, flows/dvc/command.py
WORKER_CLONE, WORKER_NAME = "OVIS_WORKER_CLONE", "OVIS_WORKER_NAME"
HEARTBEAT_SECONDS = 30  # of a run on a worker; the least that Prefect 3.8 takes
LOOPBACK = ("127.0.0.1", "localhost", "::1")
RESERVED = re.compile("[%?#]")  # what SQLAlchemy's URL of a file would take for something else


def sqlite_url(path: Path, driver: str = "pysqlite") -> str:
    """Return SQLAlchemy's URL of a database, whose path may have what means something in a URL.

    In that case it names the driver: of a plain one MLflow makes the folder, as it is escaped.
    """
    escaped = RESERVED.sub(lambda found: f"%{ord(found[0]):02X}", str(path))
    return f"sqlite:///{path}" if escaped == str(path) else f"sqlite+{driver}:///{escaped}"


def sqlite_path(url: str) -> Path | None:
    """Return the file of an sqlite URL, None of another one."""
    _, scheme, path = url.rpartition("sqlite:///")
    return Path(unquote(path)) if scheme else None


def default_settings(root: Path) -> dict[str, str]:
    """Return the defaults for a project at `root`."""
    return {
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "GIT_PYTHON_REFRESH": "quiet",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_TRACKING_URI": sqlite_url(root / DATABASE),
        # A server that is away is told after a quarter of a minute, not after four.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
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
    database = Path(os.environ.get("PREFECT_HOME", settings["PREFECT_HOME"])) / "prefect.db"
    if RESERVED.search(str(database)):  # Prefect would not escape them
        url = sqlite_url(database, "aiosqlite")
        settings["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = url
    if server := _server_of_profile():
        del settings["PREFECT_HOME"]  # where Prefect finds the profile, with its keys
        settings["PREFECT_API_URL"] = server
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    for name in ("no_proxy", "NO_PROXY"):  # no proxy can reach a server on this machine
        others = [host for host in os.environ.get(name, "").split(",") if host]
        os.environ[name] = ",".join(dict.fromkeys([*others, *LOOPBACK]))
    # What starts from here writes and reads UTF-8 under LC_ALL=C, too; a terminal may not.
    os.environ["PYTHONUTF8"] = "1"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


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


def apply_worker_settings(root: Path, name: str) -> None:
    """Make this process's environment that of a worker in the clone at `root`, and of its stages.

    Before Prefect is imported, which reads it once.
    """
    os.environ |= {
        **stage_environment(),
        # The flow is imported from here; a stage's own code comes first in its checkout.
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])),
        # A worker that is stopped kills its runs, and nobody would push what the stages then make.
        STOP_ORPHANS: "1",
        WORKER_CLONE: str(root),
        WORKER_NAME: name,
        "DVC_SITE_CACHE_DIR": str(root / ".dvc/tmp/site"),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",  # a worker's terminal is its log
        "PREFECT_WORKER_QUERY_SECONDS": "2",
    }
