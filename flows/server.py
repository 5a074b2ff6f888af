"""A Prefect server on this machine that lives exactly as long as the flow that started it.

Prefect's own temporary server survives a killed flow (270 MB each time), and of two that create one
database one fails. `python -m flows.server <port> <parent>` is the server's process; if it inherits
a socket for that port, it lacks pages and services that only deployments need. If PREFECT_API_URL
names a server, that one is used instead, with the key, password and certificates of Prefect's
settings.
"""

import atexit
import fcntl
import importlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

from flows.environment import STATE_FOLDER, default_settings

HOST = "127.0.0.1"
SECONDS_TO_START = 600  # for our server, whose end we see at once; it took 100 on a busy machine
SECONDS_TO_ANSWER = 120  # for a server elsewhere
# Services that a flow in one process does not need: half a second at start, and periodic work.
UNUSED = {
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
}
FULL_DISK = re.compile(rb"disk is full|No space left on device|Disk quota exceeded")
_temporary: set[str] = set()  # API URLs of servers that end with this process


class LocalServer:
    """A server for this process: it sets PREFECT_API_URL, and ends when the process does.

    Start it before Prefect is imported, which reads the variable once. The server starts while the
    import runs.
    """

    def __init__(self, root: Path) -> None:
        """Keep the server's database and log in the project at `root`."""
        self._log = root / STATE_FOLDER / "logs" / "prefect-server.log"
        self._settings = {**UNUSED, **default_settings(root), **os.environ}
        self._home = Path(self._settings["PREFECT_HOME"])
        self._process: subprocess.Popen | None = None
        self._starting = ExitStack()  # holds a lock until the server answers
        self.url = os.environ.get("PREFECT_API_URL", "")

    def start(self) -> Self:
        """Start the server, unless it was started or PREFECT_API_URL names one; return at once."""
        if self.url:
            return self
        self._home.mkdir(parents=True, exist_ok=True)
        # Two servers would both create the tables of a new database, and one would fail.
        lock = self._starting.enter_context((self._home / "starting.lock").open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with socket.socket() as mine, self._log.open("ab") as out:
            mine.bind((HOST, 0))  # the server takes it over, so nobody else gets its port meanwhile
            port = mine.getsockname()[1]
            self.url = f"http://{HOST}:{port}/api"
            self._before = out.tell()  # bytes that earlier servers wrote
            numbers = map(str, (port, os.getpid(), mine.fileno()))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flows.server", *numbers],
                env=self._settings,
                pass_fds=[mine.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C must not end it before the flow's last message
            )
        os.environ["PREFECT_API_URL"] = self.url
        _temporary.add(self.url)
        # Prefect sends its last logs when threads end, which is before this runs.
        atexit.register(self.stop)
        return self

    def wait_until_ready(self) -> None:
        """Return as soon as the server answers.

        Raises:
            RuntimeError: it has ended, refuses, or did not answer in time.
        """
        seconds = SECONDS_TO_START if self._process else SECONDS_TO_ANSWER
        deadline = time.monotonic() + seconds
        while True:
            # Once our server has ended, another may answer at its address.
            if self._process and (code := self._process.poll()) is not None:
                raise RuntimeError(self._why_it_ended(code))
            if _answers(self.url):
                break
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"Prefect's server at {self.url} did not answer in {seconds} s"
                    + (f"; see {self._log}" if self._process else "; is PREFECT_API_URL right?")
                )
            time.sleep(0.1)
        self._starting.close()

    def _why_it_ended(self, code: int) -> str:
        told = self._log.read_bytes()[self._before :]
        if FULL_DISK.search(told) or not shutil.disk_usage(self._home).free:
            return f"{self._home}: the disk is full; make room and run the same again"
        return f"Prefect's server ended with code {code}; see {self._log}"

    def stop(self) -> None:
        """End the server if this object started it."""
        self._starting.close()
        if self._process:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=10)
            self._process.kill()
            self._process.wait()


def require_server() -> None:
    """Return as soon as the server of PREFECT_API_URL answers; RuntimeError if it refuses."""
    if not os.environ.get("PREFECT_API_URL"):
        raise ValueError("PREFECT_API_URL is not set: give the address of the workers' server")
    LocalServer(Path.cwd()).wait_until_ready()


def _answers(url: str) -> bool:
    """Ask the server at `url` as Prefect would; False if nobody listens yet."""
    import httpx
    from prefect import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    try:
        # Prefect read its settings when it was imported, perhaps before the server was started.
        with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
            if error := client.api_healthcheck():
                raise error
            client.read_work_pools(limit=1)  # asking for its health needs no password
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise RuntimeError(
                f"Prefect's server at {url} refuses this user ({status}): set "
                "PREFECT_API_AUTH_STRING=<user>:<password>, or PREFECT_API_KEY for Prefect Cloud"
            ) from error
        if error.response.is_client_error:
            raise RuntimeError(f"{url} is no address of Prefect's API ({status})") from error
        return False
    except httpx.TransportError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise RuntimeError(
                f"{url}: {error}; PREFECT_API_SSL_CERT_FILE=<file> names your own authority"
            ) from error
        return False
    return True


def outlives_this_process() -> bool:
    """Say whether links to the server of PREFECT_API_URL will still work tomorrow."""
    url = os.environ.get("PREFECT_API_URL")
    return url is not None and url not in _temporary


def call_flow(
    root: Path,
    path: str,
    *arguments: Any,
    run_name: str | None = None,
    check: Callable[[], None] | None = None,
    server: LocalServer | None = None,
) -> list:
    """Run the flow "<module>:<name>" on the project and return its list.

    `check` is called after all is loaded and before the flow. A ValueError of the flow is raised.
    """
    server = (server or LocalServer(root)).start()
    module, _, name = path.partition(":")
    flow = getattr(importlib.import_module(module), name)  # imports Prefect meanwhile
    from flows.store import open_store  # MLflow's store, slow to create the first time

    open_store(root, os.environ["MLFLOW_TRACKING_URI"])
    if check:
        check()
    server.wait_until_ready()
    if run_name:
        flow = flow.with_options(flow_run_name=lambda: run_name)  # a string would be a template
    if callable(signal.getsignal(signal.SIGINT)):  # from here on, Prefect and MLflow are told
        signal.signal(signal.SIGINT, signal.default_int_handler)
    state = flow(str(root), *arguments, return_state=True)
    result = state.result(raise_on_failure=False)
    if isinstance(result, ValueError):
        raise result
    if not isinstance(result, list):
        raise RuntimeError(f"the flow ended as {state.name}: {state.message or result}")
    return result


def _serve(port: int, parent: int, inherited: int | None = None) -> None:
    """Serve until the parent has ended, on the socket of this number if one is inherited."""

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()
    import uvicorn
    from prefect.server.api.server import create_app

    config = uvicorn.Config(
        partial(create_app, ephemeral=inherited is not None, final=True),
        factory=True,
        host=HOST,
        port=port,
        log_level="error",
        lifespan="on",
    )
    uvicorn.Server(config).run(None if inherited is None else [socket.socket(fileno=inherited)])


if __name__ == "__main__":
    _serve(*map(int, sys.argv[1:]))
