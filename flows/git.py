"""Git's commands, in a folder, with their own words where they fail."""

import os
import subprocess
from pathlib import Path


def git(folder: Path, *arguments: str, **environment: str) -> str:
    """Return what `git <arguments>` says in the folder.

    Raises:
        RuntimeError: it failed; the message has its own words.
    """
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"git {' '.join(arguments)} in {folder}: {done.stderr.strip()}")
    return done.stdout.strip()
