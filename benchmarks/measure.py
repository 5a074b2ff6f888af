"""What the benchmarks share: timing, medians, a markdown table with date and machine."""

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from flows.resources import count_cores


class Spent(NamedTuple):
    """What a command and its children took."""

    seconds: float
    peak_mib: float  # of the largest process
    cpu_seconds: float


def seconds_of(function: Callable[[], object]) -> float:
    """Return the wall-clock seconds of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def core_seconds_of(function: Callable[[], object]) -> float:
    """Return the core seconds of one call in this process, whatever else the machine does."""
    started = time.process_time()
    function()
    return time.process_time() - started


def medians(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each function, called in turn so that drift affects all."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            seconds[name].append(seconds_of(function))
    return {name: statistics.median(values) for name, values in seconds.items()}


def run(command: Sequence[str], folder: Path, **more: str) -> Spent:
    """Run a command and return what it took.

    Raises:
        RuntimeError: it failed; the message has its last output.
    """
    started = time.perf_counter()
    output = folder / "output.log"
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **more},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        end = output.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{' '.join(command)} in {folder} failed:\n{end}")
    return Spent(seconds, peak_mib(usage), usage.ru_utime + usage.ru_stime)


def peak_mib(usage: resource.struct_rusage) -> float:
    """Return the peak resident memory, which Linux counts in KiB and macOS in bytes."""
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def table(title: str, rows: Sequence[dict[str, str]]) -> str:
    """Return a markdown table under a line that says what, when and on how many cores."""
    when = datetime.now(UTC).date().isoformat()
    columns = list(rows[0])
    lines = [
        f"{title} ({when}, {count_cores()} CPU cores)",
        "",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
        *(f"| {' | '.join(row[column] for column in columns)} |" for row in rows),
    ]
    return "\n".join(lines)
