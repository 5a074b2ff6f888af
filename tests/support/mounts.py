"""Real small and read-only disks. Mounting them needs root, so others skip their tests."""

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

FORBIDDEN = ("must be superuser", "permission denied", "Operation not permitted")
PATH = {"PATH": os.environ["PATH"]}


@contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[None]:
    """Mount a file system at a folder until the block ends.

    Skips the test only if the kernel or mount(8) forbids it to this user; whatever else fails is an
    error of the test.
    """
    folder.mkdir(exist_ok=True)
    command = ["mount", *arguments, str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, env={"LC_ALL": "C", **PATH})
    if any(words in ended.stderr for words in FORBIDDEN):
        pytest.skip(f"a real disk of its own needs root: {ended.stderr.strip()}")
    assert ended.returncode == 0, ended.stderr
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a log may be open


def small_disk(folder: Path, size: str):
    """Mount a disk of the given size ("80m") at the folder until the block ends."""
    return mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "tmpfs")


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond some bytes: needs no root, and stands for a disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fill(folder: Path) -> Path:
    """Fill the disk; return the file that does so."""
    path = folder / "full"
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"0" * 4096)
    return path
