"""Copies of the repository in which the whole DAG is run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML


def clone(repository: Path, folder: Path, profile: str) -> Path:
    """Copy what git tracks into a fresh repository and apply a profile."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=repository, check=True, capture_output=True, text=True
    )
    for name in listed.stdout.split("\0"):
        if name and name != "dvc.lock" and (repository / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repository / name, folder / name)
    run_command(["git", "init", "-q"], folder)
    run_command([sys.executable, "-m", "flows", "profile", profile], folder)
    return folder


def clone_environment(folder: Path) -> dict[str, str]:
    """Return what makes a command use the code of the copy, in this Python."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PYTHONPATH": str(folder), "DVC_NO_ANALYTICS": "1", "PATH": path}


def run_command(command: list[str], folder: Path) -> str:
    """Run a command of the copy; fail with its last lines."""
    done = subprocess.run(
        command, cwd=folder, env=clone_environment(folder), capture_output=True, text=True
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"{command} in {folder}:\n{output[-6000:]}"
    return output


def reproduce(folder: Path) -> dict[str, dict[str, str]]:
    """Run every stage by DVC and return stage → output → hash."""
    run_command([sys.executable, "-m", "dvc", "repro"], folder)
    return output_hashes(folder)


def output_hashes(folder: Path) -> dict[str, dict[str, str]]:
    """Return stage → output → hash of a dvc.lock."""
    stages = YAML(typ="safe").load(folder / "dvc.lock")["stages"]
    return {
        name: {out["path"]: out["md5"] for out in stage["outs"]} for name, stage in stages.items()
    }
