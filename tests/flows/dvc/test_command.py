"""Forked DVC commands behave as those of the command line."""

import os
import signal
import socket

import psutil
import pytest

from flows.dvc import command
from flows.dvc.command import LOST
from flows.environment import STOP_ORPHANS, stage_environment
from tests.support.toy import wait_until


@pytest.fixture
def log(tmp_path):
    return tmp_path / "server.log"


def start(toy, log, *arguments: str, **more: str) -> command.Command:
    output = toy.mark("slow.output")  # a name that the toy's git does not see
    return command.run(arguments, toy.root, {**stage_environment(), **more}, output, log)


def finish(toy, log, *arguments: str, **more: str) -> tuple[int, str]:
    running = start(toy, log, *arguments, **more)
    wait_until(lambda: running.poll() is not None)
    return running.poll(), (toy.root / "slow.output").read_text()


def is_running(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_commands_have_output_exit_code_folder_and_environment(toy, log):
    toy.replace("-m stages side", "-c 'import os; print(os.environ[\"NOTE\"])'; true", "dvc.yaml")
    code, output = finish(toy, log, "stage", "list", "--name-only")
    names = ["download", "cut@0", "cut@1", "merge", "evaluation", "side"]
    assert (code, output.split()) == (0, names)
    code, output = finish(toy, log, "repro", "-s", "download")
    assert code == 0
    assert output.startswith("Running stage 'download':")
    code, output = finish(toy, log, "repro", "-f", "-s", "side", NOTE="from the environment")
    assert "from the environment" in output
    code, output = finish(toy, log, "repro", "-s", "sid")
    assert code == 255
    assert "sid" in output


def test_running_commands_outlive_the_process_that_forked_them(toy, log):
    hold = toy.mark("hold.download")
    started = start(toy, log, "repro", "-s", "download")
    toy.until_it_runs("download")
    running = psutil.Process(started.pid)
    assert os.getsid(started.pid) == started.pid
    server = running.parent()
    assert server.num_threads() == 1  # a fork of a process with threads may hang
    server.send_signal(signal.SIGKILL)
    hold.unlink()
    wait_until(lambda: started.poll() is not None)
    assert started.poll() == 0
    assert (toy.root / "dvc.lock").exists()
    wait_until(lambda: not is_running(server))
    code, output = finish(toy, log, "repro", "-s", "download")  # through a new process
    assert (code, "didn't change, skipping" in output) == (0, True)


def test_a_command_is_lost_if_the_server_dies_before_it_reads_the_request(toy, log, monkeypatch):
    finish(toy, log, "stage", "list")
    (server,) = (
        child for child in psutil.Process().children() if "flows.dvc.command" in child.cmdline()
    )
    server.suspend()
    shutdown = socket.socket.shutdown

    def send_and_kill(own, how):
        shutdown(own, how)
        server.kill()

    monkeypatch.setattr(socket.socket, "shutdown", send_and_kill)
    lost = start(toy, log, "stage", "list")
    assert (lost.pid, lost.poll()) == (0, LOST)


def test_a_killed_command_is_lost(toy, log):
    toy.mark("slow.download", "600")
    started = start(toy, log, "repro", "-s", "download")
    toy.until_it_runs("download")
    os.killpg(started.pid, signal.SIGKILL)
    wait_until(lambda: started.poll() is not None)
    assert started.poll() == LOST


OWNER = """
import os, sys, time
from pathlib import Path
from flows.dvc import command
root, output, log = map(Path, sys.argv[1:])
started = command.run(["repro", "-s", "download"], root, dict(os.environ), output, log)
print(started.pid, flush=True)
"""


@pytest.mark.parametrize("stops", [False, True])
def test_the_server_ends_with_its_owner_and_stops_commands_where_it_is_told_to(toy, log, stops):
    hold = toy.mark("hold.download")
    more = {**stage_environment(), **({STOP_ORPHANS: "1"} if stops else {})}
    more["PYTHONPATH"] = toy.environment()["PYTHONPATH"]
    owner = toy.start("-c", OWNER, str(toy.root), str(toy.mark("slow.output")), str(log), **more)
    running = psutil.Process(int(owner.stdout.readline()))
    server = running.parent()
    wait_until(lambda: (toy.root / "runs.log").exists() or not is_running(running))
    assert owner.communicate()[0] == ""  # nothing that goes on holds its output
    wait_until(lambda: not is_running(server))
    if stops:
        wait_until(lambda: not is_running(running))
    hold.unlink()
    wait_until(lambda: not is_running(running))
    assert (toy.root / "dvc.lock").exists() is not stops
