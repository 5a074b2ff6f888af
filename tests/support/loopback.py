"""A server and workers on this machine, as real processes, for tests and `make workers-demo`.

Prefect's server uses PostgreSQL if it is installed. Workers run in their own clones and exchange
results through a folder. All processes end with the block.
"""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Self

from flows.environment import default_settings
from tests.support.service import HOST, Service, free_port

SECONDS_TO_START = 600  # we see at once if it ends; it took 200 on a busy machine
CODE = Path(__file__).parents[2]


class Loopback:
    """The services; a context manager that starts the server and ends everything."""

    def __init__(self, folder: Path) -> None:
        """Keep logs and Prefect's own files in `folder`."""
        self.folder = folder
        self.workers: list[Service] = []
        port = free_port()
        self.url = f"http://{HOST}:{port}/api"
        self.database = _postgres(folder)
        settings = {
            **default_settings(folder),
            **environment_without_servers(),
            "PREFECT_HOME": str(folder),
            "PREFECT_API_URL": self.url,
            "PYTHONPATH": str(CODE),  # for projects that bring no flows of their own
        }
        if self.database:
            settings["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = self.database.address
        self.environment = settings
        self.server = Service(
            [sys.executable, "-m", "flows.server", str(port), str(os.getpid())],
            CODE,
            settings,
            folder / "logs/server.log",
        )

    def __enter__(self) -> Self:
        """Start database and server, and wait until they answer.

        Raises:
            RuntimeError: one of them has ended, or did not answer in time.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            if self.database:
                self.database.create()
                self.database.service.start()
            self.server.start()
            self.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        """End everything, workers first."""
        self.stop_workers()
        self.server.stop()
        if self.database:
            self.database.remove()

    def wait_until_ready(self) -> None:
        """Return as soon as the server and its database answer.

        Raises:
            RuntimeError: it has ended, or did not answer within ten minutes.
        """
        deadline = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < deadline and self.server.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/ready", timeout=10):
                    return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError(f"Prefect's server did not start; see {self.server.log}")

    def make_pools(self, project: Path) -> None:
        """Create what the project's prefect.yaml names on this server."""
        command = [sys.executable, "-m", "flows", "pools"]
        quiet = {"stdout": subprocess.DEVNULL}
        subprocess.run(command, cwd=project, env=self.environment, check=True, **quiet)

    def add_worker(self, project: Path, name: str, pool: str, **environment: str) -> Service:
        """Start a worker that runs one stage at a time, in a clone beside the project.

        Args:
            project: the coordinator's project, the clone's origin, with a DVC remote.
            name: the machine's name; workers of several pools share its clone.
            pool: the pool whose stages it runs.
            environment: added to the services' environment.
        """
        label = f"{name}-{pool}"
        command = [sys.executable, "-m", "flows", "worker", "--pool", pool, "--name", label]
        worker = Service(
            [*command, "--stages", "1"],
            clone_beside(project, name),
            {**self.environment, **environment},
            self.folder / f"logs/{label}.log",
        )
        worker.start()
        self.workers.append(worker)
        return worker

    def stop_workers(self) -> bool:
        """Stop all workers by SIGTERM; say whether they and their stages ended by themselves."""
        ended = [worker.stop() for worker in self.workers]
        self.workers.clear()
        return all(ended)


def environment_without_servers() -> dict[str, str]:
    """Return this environment without variables that name Prefect and MLflow servers."""
    others = ("PREFECT_", "MLFLOW_TRACKING_URI")
    return {key: value for key, value in os.environ.items() if not key.startswith(others)}


def share_folder(project: Path) -> Path:
    """Make a folder beside the project its default DVC remote, on this machine only."""
    store = project.parent / "store"
    store.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "dvc", "remote", "add", "--quiet", "--local", "--force"]
    subprocess.run([*command, "--default", "store", str(store)], cwd=project, check=True)
    return store


def clone_beside(project: Path, name: str) -> Path:
    """Return the clone of that name beside the project, with its remote; create it if needed."""
    clone = project.parent / name
    if not clone.is_dir():
        subprocess.run(["git", "clone", "--quiet", str(project), str(clone)], check=True)
        shutil.copy(project / ".dvc/config.local", clone / ".dvc/config.local")
    return clone


class _Database:
    """A separate PostgreSQL server, in a folder that its user may enter."""

    def __init__(self, programs: Path, log: Path, user: str | None) -> None:
        self._programs = programs
        self._user = user
        self._folder = Path(tempfile.mkdtemp(prefix="ovis-dag-postgres-"))
        port = free_port()
        self.address = f"postgresql+asyncpg://prefect@{HOST}:{port}/postgres"
        settings = {
            "listen_addresses": HOST,
            "port": str(port),
            "unix_socket_directories": str(self._folder),
            "fsync": "off",  # the database does not outlive this process
        }
        command = [str(programs / "postgres"), "-D", str(self._folder / "data")]
        for key, value in settings.items():
            command += ["-c", f"{key}={value}"]
        self.service = Service(command, self._folder, dict(os.environ), log, user)

    def create(self) -> None:
        if self._user:
            shutil.chown(self._folder, self._user, self._user)
        command = [str(self._programs / "initdb"), "-D", str(self._folder / "data")]
        command += ["--auth", "trust", "--username", "prefect", "--encoding", "UTF8", "--no-sync"]
        initdb = Service(
            command, self._folder, dict(os.environ), self.service.log, self.service.user
        )
        initdb.start()
        if initdb.process.wait():
            raise RuntimeError(f"initdb failed; see {self.service.log}")

    def remove(self) -> None:
        self.service.stop(signal.SIGINT)  # ends its clients' sessions too
        shutil.rmtree(self._folder, ignore_errors=True)


def _postgres(folder: Path) -> _Database | None:
    """Return a database that can be started, or None if PostgreSQL is not installed."""
    places = [*map(Path, os.environ.get("PATH", "").split(os.pathsep))]
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    programs = next((place for place in places if (place / "initdb").is_file()), None)
    user = None
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root; its package creates a user for it
        user = next((one.pw_name for one in pwd.getpwall() if one.pw_name == "postgres"), None)
        programs = programs if user else None
    return _Database(programs, folder / "logs/postgres.log", user) if programs else None
