"""DVC's own commands in a fresh clone: pipelines that only the claims run are in nobody's way."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.dvc.project import load_graph, share_cache
from tests.support.toy import REPOSITORY, Toy

CLAIMS = """\
vars:
  - ../params.yaml
stages:
  rpn:
    wdir: ..
    cmd: >-
      cp data/merge/all.txt data/rpn.txt && echo '{"recall":${side.factor}}' > data/rpn.json
    deps:
      - data/merge/all.txt
    outs:
      - data/rpn.txt
    metrics:
      - data/rpn.json
"""
UP_TO_DATE = "Data and pipelines are up to date."


@pytest.fixture
def clone(fresh: Toy, tmp_path: Path) -> Toy:
    """Give a clone of a toy with claims, after two commits whose results are on a remote."""
    shutil.copytree(fresh.root, tmp_path / "origin")
    toy = Toy(tmp_path / "origin")
    shutil.copytree(REPOSITORY / "comparators", toy.root / "comparators")
    (toy.root / "comparators/dvc.yaml").write_text(CLAIMS)
    (tmp_path / "store").mkdir()
    toy.dvc("remote", "add", "-q", "-d", "store", str(tmp_path / "store"))
    for rate in (0.5, 1.0):
        toy.replace("rate: 0.5", f"rate: {rate}")
        toy.dvc("repro", "-q")
        toy.git("add", "-A")
        toy.git("commit", "-qm", f"rate {rate}")
        toy.dvc("push", "-q", "--run-cache")
    toy.git("clone", "-q", str(toy.root), str(tmp_path / "clone"))
    clone = Toy(tmp_path / "clone")
    clone.git("config", "user.name", "toy")
    clone.git("config", "user.email", "toy@localhost")
    return clone


def test_every_command_ends_well_and_the_status_is_clean(clone):
    clone.dvc("pull", "--run-cache")
    assert clone.dvc("status").strip() == UP_TO_DATE
    for command in (
        "pull",
        "checkout",
        "metrics diff HEAD~1",
        "params diff HEAD~1",
        "plots diff HEAD~1",
        "push --run-cache",
        "exp run -S merge.rate=1.5",
        "exp run --queue -S merge.rate=2.0",
        "queue remove --queued",
        "exp show --only-changed",
    ):
        output = clone.dvc(*command.split())
        assert "WARNING" not in output and "failed" not in output, f"dvc {command}: {output}"
    assert clone.dvc("status").strip() == UP_TO_DATE


def test_hooks_of_dvc_let_git_do_its_work(clone):
    clone.dvc("fetch", "-q", "--all-commits")
    clone.dvc("checkout", "-q")
    clone.dvc("install")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in ("checkout -q HEAD~1", "checkout -q -", "commit -q --allow-empty -m x"):
        done = subprocess.run(
            ["git", *command.split()],
            cwd=clone.root,
            env={**clone.environment(), "PATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"git {command}: {done.stderr}"
    assert clone.dvc("status").strip() == UP_TO_DATE


def test_claims_run_where_the_file_that_hides_them_is_not(clone):
    clone.dvc("pull", "-q")
    assert not any(":" in name for name in load_graph(clone.root, None))
    (clone.root / "comparators/.dvcignore").unlink()
    clone.dvc("repro", "comparators/dvc.yaml")
    assert (clone.root / "data/rpn.txt").read_text()

    clone.git("worktree", "add", "-q", "../worktree")
    worktree = clone.root.parent / "worktree"
    assert (worktree / "comparators/.dvcignore").is_file()
    share_cache(clone.root, worktree)
    assert "comparators/dvc.yaml:rpn" in load_graph(worktree, ["comparators/dvc.yaml:rpn"])
