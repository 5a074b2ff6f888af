import os
import threading
import time
from contextlib import suppress

import psutil
import pytest
from ruamel.yaml import YAML

from flows.dvc.project import load_graph
from flows.stage import StageFailedError, StageRunner
from tests.support.toy import wait_until


def run(toy, name: str, shown: list[str] | None = None):
    shown = [] if shown is None else shown
    return StageRunner(toy.root).run(load_graph(toy.root)[name], shown.append)


def test_outcomes_follow_dvc(toy):
    shown: list[str] = []
    assert run(toy, "download", shown).outcome == "executed"
    assert "working download" in shown
    assert not any("dvc.lock" in line for line in shown)
    assert run(toy, "cut@1").outcome == "executed"
    assert run(toy, "cut@1").outcome == "unchanged"
    toy.replace("by: 1", "by: 2")
    toy.git("commit", "-qam", "a commit in mid-run")
    changed = run(toy, "cut@1")
    assert changed.outcome == "executed"
    assert changed.made["commit"] == toy.git("rev-parse", "HEAD").strip()
    toy.replace("by: 2", "by: 1")
    restored = run(toy, "cut@1")
    assert (restored.outcome, restored.stage, restored.group) == ("restored", "cut@1", "cut")
    assert restored.seconds > 0
    toy.replace("by: 1", "by: 3")
    assert run(toy, "cut@1").made["commit"] == toy.git("rev-parse", "HEAD").strip() + "+"


def test_failure_has_the_last_lines_and_where_all_are(toy):
    toy.mark("fail.download")
    with pytest.raises(StageFailedError, match=r"download failed \(exit code 255\)") as caught:
        run(toy, "download")
    message = str(caught.value)
    assert "the disk is on fire" in message
    assert ".flows/logs/download.log" in message
    assert "about to fail" in (toy.root / ".flows/logs/download.log").read_text()


def test_carriage_returns_and_unfinished_lines_are_lines(toy):
    toy.replace(
        'print("working"',
        'print("1%\\r2%\\nend", end="")\nprint("working"',
        "stages/side/__main__.py",
    )
    run(toy, "download")
    shown: list[str] = []
    run(toy, "side", shown)
    assert "1%" in shown
    assert "2%" in shown


def test_any_bytes_are_shown_and_half_a_character_waits_for_the_rest(toy):
    write = "import os\nos.write(1, b'\\xff caf\\xc3')\ntime.sleep(0.5)\nos.write(1, b'\\xa9\\n')\n"
    toy.replace('print("working"', write + 'print("working"', "stages/side/__main__.py")
    run(toy, "download")
    shown: list[str] = []
    assert run(toy, "side", shown).outcome == "executed"
    assert "\\xff caf\u00e9" in shown


def test_stop_ends_the_stage_and_its_children(toy):
    toy.mark("slow.download", "60")
    runner, errors = StageRunner(toy.root), []  # what DVC runs in stays for later stages
    stage = load_graph(toy.root)["download"]

    def target() -> None:
        try:
            runner.run(stage)
        except StageFailedError as error:
            errors.append(str(error))

    others = set(psutil.Process().children(recursive=True))
    thread = threading.Thread(target=target)
    thread.start()
    toy.until_it_runs("download")
    mine = set(psutil.Process().children(recursive=True))
    children = list(mine - others)
    assert len(children) >= 2  # DVC and the stage, at least
    started = time.monotonic()
    runner.stop()
    thread.join(30)
    assert time.monotonic() - started < 20
    assert "download was stopped" in errors[0]
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []
    with pytest.raises(StageFailedError, match="stopped before it started"):
        runner.run(stage)


def test_a_stop_leaves_dvc_lock_whole(toy):
    run(toy, "download")
    path = toy.root / "dvc.lock"
    entry = path.read_text().partition("stages:\n")[2]  # DVC takes long to write hundreds
    copies = [entry.replace("download:", f"old{number}:", 1) for number in range(300)]
    path.write_text("".join([path.read_text(), *copies]))
    whole, ended = path.stat().st_size, []
    runner, stage = StageRunner(toy.root), load_graph(toy.root)["side"]

    def target() -> None:
        with suppress(StageFailedError):
            runner.run(stage)
        ended.append(True)

    thread = threading.Thread(target=target)
    thread.start()
    wait_until(lambda: path.stat().st_size < whole or ended)
    assert not ended  # DVC writes the file in place
    runner.stop()
    thread.join(60)
    assert {"download", "side", "old299"} <= set(YAML(typ="safe").load(path)["stages"])
    assert run(toy, "side").outcome == "unchanged"


def test_a_stage_that_another_execution_makes_is_waited_for(toy):
    hold = toy.mark("hold.download")
    path = f"{os.path.dirname(os.sys.executable)}{os.pathsep}{os.environ['PATH']}"
    other = toy.start("-m", "dvc", "repro", "-s", "download", PATH=path)
    toy.until_it_runs("download")
    shown: list[str] = []

    def show(line: str) -> None:
        shown.append(line)
        if "another execution is making this (PID" in line:
            hold.unlink()

    outcome = StageRunner(toy.root).run(load_graph(toy.root)["download"], show)
    output, _ = other.communicate(timeout=60)
    assert other.returncode == 0, output
    assert not hold.exists()
    assert outcome.outcome == "unchanged"
    assert toy.ran() == ["download"]
