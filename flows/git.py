"""Runs git commands in a folder; errors carry git's own message."""

import os
import subprocess
from pathlib import Path


class GitError(RuntimeError):
    """A git command failed; the message is git's own."""


def git(folder: Path, *arguments: str, **environment: str) -> str:
    """Return the output of `git <arguments>` without its last newline, or raise GitError."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env={**os.environ, **environment},
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
        )
    except FileNotFoundError as error:
        if not folder.is_dir():
            raise
        raise GitError("git is not on PATH; install it") from error
    if done.returncode:
        raise GitError(f"git {' '.join(arguments)} in {folder}: {done.stderr.strip()}")
    return done.stdout.rstrip("\n")
