"""Forked DVC commands behave as those of the command line."""

import os
import signal
import time

import psutil
import pytest
from toy import wait_until

from flows.environment import stage_environment
from flows.warm_dvc import LOST, STOP_ORPHANS, WarmDvc


@pytest.fixture
def warm(tmp_path):
    warm = WarmDvc(stage_environment(), tmp_path / "logs" / "warm-dvc.log")
    yield warm
    warm.close()


def finish(warm, toy, *arguments: str, **more: str) -> tuple[int, str]:
    output = toy.mark("slow.output")  # a name that the toy's git does not see
    command = warm.run(arguments, toy.root, {**stage_environment(), **more}, output)
    wait_until(lambda: command.poll() is not None)
    return command.poll(), output.read_text()


def test_commands_have_output_exit_code_folder_and_environment(warm, toy):
    toy.replace("-m stages.side", "-c 'import os; print(os.environ[\"NOTE\"])'; true", "dvc.yaml")
    code, output = finish(warm, toy, "stage", "list", "--name-only")
    assert (code, output.split()) == (
        0,
        ["download", "cut@0", "cut@1", "merge", "evaluation", "side"],
    )
    code, output = finish(warm, toy, "repro", "-s", "download")
    assert code == 0
    assert output.startswith("Running stage 'download':")
    code, output = finish(warm, toy, "repro", "-f", "-s", "side", NOTE="from the environment")
    assert "from the environment" in output
    code, output = finish(warm, toy, "repro", "-s", "sid")
    assert code == 255
    assert "sid" in output


def test_running_commands_outlive_the_process_that_started_them(warm, toy):
    toy.mark("slow.download", "2")
    output = toy.mark("slow.output")
    command = warm.run(["repro", "-s", "download"], toy.root, stage_environment(), output)
    wait_until(lambda: (toy.root / "runs.log").exists())
    running = psutil.Process(command.pid)
    assert os.getsid(command.pid) == command.pid
    parent = running.parent()
    assert parent.num_threads() == 1  # a fork of a process with threads may hang
    parent.send_signal(signal.SIGKILL)
    wait_until(lambda: command.poll() is not None)
    assert command.poll() == LOST
    wait_until(lambda: not running.is_running() or running.status() == psutil.STATUS_ZOMBIE)
    assert (toy.root / "dvc.lock").exists()
    code, output = finish(warm, toy, "repro", "-s", "download")  # through a new process
    assert (code, "didn't change, skipping" in output) == (0, True)


def test_closed_it_starts_nothing_more_and_ends_with_the_last_command(warm, toy):
    toy.mark("slow.download", "1")
    output = toy.mark("slow.output")
    command = warm.run(["repro", "-s", "download"], toy.root, stage_environment(), output)
    parent = psutil.Process(command.pid).parent()
    warm.close()
    assert finish(warm, toy, "status")[0] == LOST
    wait_until(lambda: command.poll() is not None)
    assert command.poll() == 0
    started = time.monotonic()
    wait_until(lambda: not parent.is_running() or parent.status() == psutil.STATUS_ZOMBIE)
    assert time.monotonic() - started < 30


def test_where_it_is_told_to_it_stops_what_its_owner_left(tmp_path, toy):
    environment = {**stage_environment(), STOP_ORPHANS: "1"}
    warm = WarmDvc(environment, tmp_path / "logs" / "warm-dvc.log")
    toy.mark("slow.download", "600")
    output = toy.mark("slow.output")
    command = warm.run(["repro", "-s", "download"], toy.root, environment, output)
    wait_until(lambda: (toy.root / "runs.log").exists())
    warm.close()  # as its end, however it comes, does
    wait_until(lambda: command.poll() is not None, 60)
    assert command.poll() == -signal.SIGTERM
