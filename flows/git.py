"""Git's commands, in a folder, with their own words where they fail."""

import os
import subprocess
from pathlib import Path


class GitError(RuntimeError):
    """A command of git failed; the message has its own words."""


def git(folder: Path, *arguments: str, **environment: str) -> str:
    """Return what `git <arguments>` says there, without its last newline, or raise GitError."""
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
    )
    if done.returncode:
        raise GitError(f"git {' '.join(arguments)} in {folder}: {done.stderr.strip()}")
    return done.stdout.rstrip("\n")
