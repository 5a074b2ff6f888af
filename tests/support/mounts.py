"""Real small and read-only disks; their tests are skipped if this user may not mount."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[None]:
    """Mount a file system at a folder until the block ends."""
    folder.mkdir(exist_ok=True)
    try:
        subprocess.run(["mount", *arguments, str(folder)], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mounting is not allowed here: {error}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a log may be open


def small_disk(folder: Path, size: str):
    """Mount a disk of the given size ("80m") at the folder until the block ends."""
    return mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "tmpfs")


def fill(folder: Path) -> Path:
    """Fill the disk; return the file that does so."""
    path = folder / "full"
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"0" * 4096)
    return path
