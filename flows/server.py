"""A Prefect server on this machine that lives exactly as long as the flow that started it.

Prefect's own temporary server survives a flow that is killed (270 MB each time) and gives up after
20 seconds, which a busy two-core machine exceeds. `python -m flows.server <port> <parent>` is the
server's process: it ends with its parent. A server named by PREFECT_API_URL is used instead.
"""

import atexit
import importlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any, Self

from flows.environment import STATE_FOLDER, default_settings

HOST = "127.0.0.1"
SECONDS_TO_START = 120
_temporary: set[str] = set()  # API URLs of servers that end with this process


class LocalServer:
    """A server for this process: it sets PREFECT_API_URL, and ends when the process does.

    Start it before Prefect is imported, which reads the variable once; the import takes its time
    while the server starts.
    """

    def __init__(self, root: Path) -> None:
        """Keep the server's database and log in the project at `root`."""
        self._log = root / STATE_FOLDER / "logs" / "prefect-server.log"
        self._process: subprocess.Popen | None = None
        self._settings = default_settings(root)
        self.url = os.environ.get("PREFECT_API_URL", "")

    def start(self) -> Self:
        """Start the server, unless PREFECT_API_URL names one."""
        if self.url:
            return self
        port = _free_port()
        self.url = f"http://{HOST}:{port}/api"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("w", encoding="utf-8") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flows.server", str(port), str(os.getpid())],
                # Its pages would look for the API at the usual port.
                env={**self._settings, **os.environ, "PREFECT_SERVER_UI_API_URL": self.url},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C must not take it before the flow's last words
            )
        os.environ["PREFECT_API_URL"] = self.url
        _temporary.add(self.url)
        # Prefect sends its last logs when threads end, which is before this.
        atexit.register(self.stop)
        return self

    def wait_until_ready(self) -> None:
        """Return as soon as the server answers.

        Raises:
            RuntimeError: it ended, or did not answer in two minutes.
        """
        deadline = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < deadline:
            if self._process and self._process.poll() is not None:
                code = self._process.returncode
                raise RuntimeError(f"Prefect's server ended with code {code}; see {self._log}")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=10):
                    return
            except OSError:  # not listening yet
                time.sleep(0.1)
        raise RuntimeError(
            f"Prefect's server at {self.url} did not answer in {SECONDS_TO_START} s"
            + (f"; see {self._log}" if self._process else "; is PREFECT_API_URL right?")
        )

    def stop(self) -> None:
        """End the server, if this started it."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def outlives_this_process() -> bool:
    """Say whether links to the server of PREFECT_API_URL will still work tomorrow."""
    url = os.environ.get("PREFECT_API_URL")
    return url is not None and url not in _temporary


def call_flow(
    root: Path, path: str, *arguments: Any, run_name: str | None = None
) -> tuple[list, bool]:
    """Run the flow "<module>:<name>" on the project and return its list, and whether it failed.

    Prefect makes up a name for the run if there is none.

    Raises:
        ValueError: the flow found wrong input.
        RuntimeError: there is no server, or the flow ended without a list.
    """
    server = LocalServer(root).start()
    module, _, name = path.partition(":")
    flow = getattr(importlib.import_module(module), name)  # imports Prefect meanwhile
    server.wait_until_ready()
    if run_name:
        flow = flow.with_options(flow_run_name=lambda: run_name)  # a text would be a template
    state = flow(str(root), *arguments, return_state=True)
    result = state.result(raise_on_failure=False)
    if isinstance(result, ValueError):
        raise result
    if not isinstance(result, list):
        raise RuntimeError(f"the flow ended as {state.name}: {state.message or result}")
    return result, not state.is_completed()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _serve(port: int, parent: int) -> None:
    import uvicorn

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()
    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        host=HOST,
        port=port,
        log_level="error",
        lifespan="on",
    )


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
