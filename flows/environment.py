"""The environment's settings that keep Prefect, DVC and MLflow on this machine and quiet.

Every setting is a default. The user's environment takes precedence; so does the active Prefect
profile (`prefect cloud login`, `prefect config set`) for Prefect's server.
"""

import io
import math
import os
import re
import sys
import tomllib
from pathlib import Path
from urllib.parse import unquote

STATE_FOLDER = ".flows"  # logs, times and locks of this machine; git and DVC ignore it
DATABASE = "mlflow.db"
STOP_ORPHANS = "OVIS_STOP_ORPHANS"  # =1: commands of a lost flow are stopped, flows/dvc/command.py
WORKER_CLONE, WORKER_NAME = "OVIS_WORKER_CLONE", "OVIS_WORKER_NAME"
PATIENCE = "OVIS_PATIENCE"  # seconds that the remote may be away before we give up
PERIOD = "OVIS_RESUME_PERIOD"  # seconds between pushes of a training's resume point
REST = "OVIS_REST"  # seconds that an unfit worker waits before it ends
SECONDS = {PATIENCE: (600.0, 0.0), PERIOD: (300.0, 0.1), REST: (0.0, 0.0)}  # default and least
MOST_SECONDS = 1e9
HEARTBEAT_SECONDS = 30  # between heartbeats of a run on a worker; Prefect 3.8 accepts no less
NO_PROXY = ("no_proxy", "NO_PROXY")  # programs read either; most prefer the first
LOOPBACK = ("127.0.0.1", "localhost", "::1")  # which no proxy can reach
RESERVED = re.compile("[%?#]")  # characters with another meaning in SQLAlchemy's URL of a file


def sqlite_url(path: Path, driver: str = "pysqlite") -> str:
    """Return SQLAlchemy's URL of a database whose path may contain reserved characters.

    If it does, the URL names the driver; else MLflow would create a folder of the escaped name.
    """
    escaped = RESERVED.sub(lambda found: f"%{ord(found[0]):02X}", str(path))
    return f"sqlite:///{path}" if escaped == str(path) else f"sqlite+{driver}:///{escaped}"


def without_user(uri: str) -> str:
    """Return an address without its user and password, to be shown."""
    return re.sub(r"^([\w+.-]+://)[^/]*@", r"\1", uri)


def sqlite_path(url: str) -> Path | None:
    """Return the file of an sqlite URL; None for other URLs."""
    _, scheme, path = url.rpartition("sqlite:///")
    return Path(unquote(path)) if scheme else None


def default_settings(root: Path) -> dict[str, str]:
    """Return the defaults for a project at `root`."""
    settings = {
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "GIT_PYTHON_REFRESH": "quiet",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_TRACKING_URI": sqlite_url(root / DATABASE),
        # A server that is away is reported after a quarter of a minute, not after four minutes.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
        "PREFECT_HOME": str(root / ".prefect"),
        # DO_NOT_TRACK alone leaves the server's heartbeat on.
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
        # Stage output goes to the server's log at INFO; the terminal has it from the runner itself.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    }
    database = Path(os.environ.get("PREFECT_HOME", settings["PREFECT_HOME"])) / "prefect.db"
    if RESERVED.search(str(database)):  # Prefect would not escape them
        url = sqlite_url(database, "aiosqlite")
        settings["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = url
    return settings


def seconds(name: str) -> float:
    """Return how many seconds one of the variables in SECONDS says, or its default.

    Raises:
        ValueError: it is no number, too small or too large.
    """
    default, least = SECONDS[name]
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= MOST_SECONDS:
        raise ValueError(
            f"{name}={text!r}: expected seconds from {least:g} to {MOST_SECONDS:g}, or unset it"
        )
    return value


def apply_settings(root: Path) -> None:
    """Put the defaults into this process's environment; call before importing Prefect or MLflow.

    Raises:
        ValueError: one of the variables in SECONDS is wrong.
    """
    for name in SECONDS:
        seconds(name)
    settings = default_settings(root)
    if server := _server_of_profile():
        del settings["PREFECT_HOME"]  # Prefect's own home has the profile with its keys
        settings["PREFECT_API_URL"] = server
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    lower, upper = (os.environ.get(name, "") for name in NO_PROXY)
    for name, given in zip(NO_PROXY, (lower or upper, upper or lower), strict=True):
        hosts = filter(None, given.split(","))
        os.environ[name] = ",".join(dict.fromkeys((*hosts, *LOOPBACK)))
    # Child processes read and write UTF-8 even under LC_ALL=C; a terminal may not.
    os.environ["PYTHONUTF8"] = "1"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _server_of_profile() -> str | None:
    """Return the address of the server in the user's active profile, if it has one.

    It does not use Prefect's settings: importing them takes longer than `plan` does.
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
    """Return a stage's environment: `python` is this one, even if not activated, and unbuffered."""
    folder = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{path}", "PYTHONUNBUFFERED": "1"}


def apply_worker_settings(root: Path, name: str) -> None:
    """Set the environment of a worker in the clone at `root`, before Prefect is imported."""
    os.environ |= {
        **stage_environment(),
        # The flow is imported from here; in its checkout a stage's own code comes first.
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])),
        # A stopped worker kills its runs, and nobody would push what their stages then make.
        STOP_ORPHANS: "1",
        WORKER_CLONE: str(root),
        WORKER_NAME: name,
        "DVC_SITE_CACHE_DIR": str(root / ".dvc/tmp/site"),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",  # a worker logs to its terminal
        "PREFECT_WORKER_QUERY_SECONDS": "2",
    }
