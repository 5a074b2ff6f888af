"""A full or read-only disk is told in a clear line, and the same command goes on once it can."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.dvc.project import load_graph
from flows.stage import StageFailedError, StageRunner
from tests.support.mounts import fill, mounted, small_disk

MAKE_ROOM = "[Errno 28] No space left on device; make room and run the same again"
COMMANDS = {"dvc": ("-m", "dvc", "repro", "side"), "flow": ("-m", "flows", "run", "side")}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_stage_that_fills_the_disk_says_so_and_goes_on_later(toy, command):
    toy.replace("factor: 2", "factor: 100000")  # 0.6 MB
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with small_disk(toy.root / "data", "64k"):
        code, output = toy.call(*command, PATH=path)
        assert code, output
        assert f"stages.side: {MAKE_ROOM}" in output
        assert "Traceback" not in output
        assert toy.ran() == ["download", "side"]
        larger = ["mount", "-o", "remount,size=8m", str(toy.root / "data")]
        subprocess.run(larger, check=True)
        code, output = toy.call(*command, PATH=path)
        assert code == 0, output
        assert toy.ran() == ["side"]


def test_a_stage_whose_log_has_no_room_says_so(toy):
    with small_disk(toy.root / ".flows", "64k"):
        runner, stage = StageRunner(toy.root), load_graph(toy.root)["download"]
        full = fill(toy.root / ".flows")
        with pytest.raises(StageFailedError, match=r"\.flows/logs is full; make room and run the"):
            runner.run(stage)
        full.unlink()
        assert runner.run(stage).outcome in ("executed", "unchanged")


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_read_only_checkout_is_one_line(toy, command):
    with mounted(toy.root, "--bind", str(toy.root)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(toy.root)], check=True)
        code, output = toy.flows(command)
    (line,) = output.splitlines()
    assert code == 1 and line.startswith("ovis-dag: [Errno 30] Read-only file system: ")
    assert line.endswith("; take a checkout that can be written and run the same again")
