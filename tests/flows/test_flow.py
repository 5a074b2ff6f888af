"""The whole flow on the toy project, in real processes, against one Prefect server on loopback."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from contextlib import closing, suppress
from urllib.parse import urlsplit

import psutil
import pytest

from tests.support.loopback import environment_without_servers
from tests.support.service import HOST, Service, free_port, kill_all
from tests.support.toy import PATIENCE, REPOSITORY, wait_until
from tests.support.tracked import read_runs

pytestmark = [
    pytest.mark.usefixtures("prefect_server"),
    pytest.mark.xdist_group("prefect"),  # one server, one worker; the other has the rest
]

NOVEL = "detector – novel 20.0 (1.2) 20.0 (1.2)"
SECRET = "twelve letters or more"
ALL = ["cut 0", "cut 1", "download", "evaluation", "merge", "side"]


def test_one_line_flow_runs():
    """FastAPI 0.155 lets Prefect be imported, and breaks its server at the first call."""
    code = "from prefect import flow\nprint(flow(lambda: 42)())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE
    )
    assert "42" in done.stdout, done.stderr


def test_executed_unchanged_changed_and_restored(toy):
    code, output = toy.flows("run")
    assert code == 0, output
    assert "[merge] working merge" in output
    assert NOVEL in " ".join(output.split())
    assert "data/evaluation/montage.png" in output
    assert toy.ran() == ALL
    first = toy.lock()
    assert toy.git("status", "--short") == "?? dvc.lock\n"

    # The same bytes as plain DVC makes, and nothing left for it to do.
    assert "up to date" in toy.dvc("status")

    # Nothing to do: no Prefect, no new MLflow run, the table all the same.
    code, output = toy.flows("run")
    assert code == 0
    assert "Nothing to do: 6 stages and shards up to date" in output
    assert NOVEL in " ".join(output.split())
    assert toy.ran() == []
    assert len(read_runs(toy.root)) == 1

    toy.replace("by: 1", "by: 2")
    code, output = toy.flows("run")
    assert code == 0, output
    assert toy.ran() == ["cut 0", "cut 1", "evaluation", "merge"]
    assert toy.lock() != first

    toy.replace("by: 2", "by: 1")
    code, output = toy.flows("run", "--cores", "1")
    assert code == 0, output
    assert toy.ran() == []
    assert toy.lock() == first

    shown = read_runs(toy.root)
    assert [run.outcomes()["cut.0"] for run in shown] == ["executed", "executed", "restored"]
    assert shown[0].outcomes()["side"] == "executed"
    assert shown[2].outcomes()["side"] == "unchanged"
    assert [run.params["cut.by"] for run in shown] == ["1", "2", "1"]
    names = [run.tags["mlflow.runName"] for run in shown]
    assert names == ["first run", "cut.by: 1 → 2", "cut.by: 2 → 1"]
    for run in shown:  # unchanged and restored stages show the same numbers as executed ones
        assert run.status == "FINISHED"
        assert run.metrics["evaluation/detector/generalized/novel/segm/AP50"] == 20.0
        assert run.metrics["merge/curve/loss"] == 2.5
        assert run.tags["prefect.flow_run_id"] in run.tags["prefect.flow_run_url"]
        assert len(run.tags["mlflow.source.git.commit"]) == 40


def test_a_run_shows_what_stages_were_made_with_as_soon_as_they_end(toy):
    """Somebody prepares the next experiment while the last stage of this one runs."""
    start = toy.git("rev-parse", "HEAD").strip()
    params = (toy.root / "params.yaml").read_text()
    hold = toy.mark("hold.evaluation")
    process = toy.start("-m", "flows", "run")
    wait_until(lambda: "merge/curve/loss" in (runs[0].metrics if (runs := shown(toy)) else {}))
    toy.until_it_runs("evaluation")
    toy.replace("by: 1", "by: 2")
    toy.git("commit", "-qam", "next experiment")
    hold.unlink()
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    (run,) = read_runs(toy.root)
    assert run.params["cut.by"] == "1"
    assert run.tags["mlflow.source.git.commit"] == start
    assert run.tags["git.uncommitted"] == "false"
    made = json.loads(run.tags["made.evaluation"])
    assert made["device"] == "cpu" and made["worker"] and 0 <= made["seconds"] < PATIENCE
    assert made["commit"] == start
    (shown_params,) = (toy.root / "mlruns").glob("**/artifacts/params.yaml")
    assert shown_params.read_text() == params != (toy.root / "params.yaml").read_text()
    with closing(sqlite3.connect(toy.root / "mlflow.db")) as database:
        ((name, digest),) = database.execute("select name, digest from datasets").fetchall()
    assert name == "data/download" and len(digest) == 32


def test_a_branch_that_is_switched_in_mid_run_leaves_no_record_in_dvc_lock_or_mlflow(toy):
    start = toy.git("rev-parse", "HEAD").strip()
    toy.git("switch", "-qc", "next")
    toy.replace("rate: 0.5", "rate: 2.0")
    toy.git("commit", "-qam", "next")
    toy.git("switch", "-q", "-")
    hold = toy.mark("hold.merge")
    process = toy.start("-m", "flows", "run", "evaluation")
    toy.until_it_runs("merge")
    toy.git("switch", "-q", "next")
    hold.unlink()
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, output
    assert "this changed while it ran: params.yaml: merge.rate: 0.5 → 2.0" in output
    assert toy.ran() == ["cut 0", "cut 1", "download", "merge"]
    assert "  cut@1:\n" in toy.lock() and "  merge:\n" not in toy.lock()
    (run,) = read_runs(toy.root)
    assert (run.status, run.tags["mlflow.source.git.commit"]) == ("FAILED", start)
    assert (run.outcomes()["merge"], run.outcomes()["evaluation"]) == ("failed", "not run")
    assert run.params == {"cut.by": "1", "download.lines": "3"}
    assert "seconds/cut.1" in run.metrics and "seconds/merge" not in run.metrics


def test_two_first_runs_at_once_make_each_stage_once(toy, monkeypatch):
    """In a fresh project both start a server and make the databases of Prefect and MLflow.

    A company's proxy, which is not there, stands before all other hosts.
    """
    for name in os.environ.keys() - environment_without_servers().keys():
        monkeypatch.delenv(name)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://{HOST}:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    log = toy.root / ".flows/logs/prefect-server.log"
    log.parent.mkdir(parents=True)
    log.write_text("of another execution\n")
    hold = toy.mark("hold.download")
    both = [toy.start("-m", "flows", "run") for _ in range(2)]

    def blocked() -> bool:
        with suppress(FileNotFoundError):  # it is made anew for each attempt
            return "blocked by" in (toy.root / ".flows/logs/download.log").read_text()
        return False

    wait_until(lambda: blocked() or any(process.poll() is not None for process in both))
    hold.unlink()
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(outputs)
    assert any("another execution is making this" in output for output in outputs)
    assert toy.ran() == ALL
    assert "up to date" in toy.dvc("status")
    assert [run.status for run in read_runs(toy.root)] == ["FINISHED"] * 2
    assert log.read_text().startswith("of another execution\n")


def shown(toy) -> list:
    try:
        return read_runs(toy.root) if (toy.root / "mlflow.db").is_file() else []
    except sqlite3.OperationalError:  # its tables are not made yet
        return []


def test_after_plain_dvc_the_results_are_published_once(done_toy):
    for _ in range(2):
        code, output = done_toy.flows("run")
        assert code == 0, output
        assert "Nothing to do" in output
    assert len(read_runs(done_toy.root)) == 1
    assert set(read_runs(done_toy.root)[0].outcomes().values()) == {"unchanged"}


def test_other_branches_finish_when_one_fails_and_the_rest_resumes(toy):
    toy.mark("fail.merge")
    code, output = toy.flows("run")
    assert code == 1
    assert "merge failed (exit code 255); its last lines" in output
    assert "the disk is on fire" in output
    assert output.index("not run") > 0
    assert toy.ran() == ["cut 0", "cut 1", "download", "merge", "side"]
    told = read_runs(toy.root)[0].outcomes()
    assert (told["merge"], told["evaluation"], told["side"]) == ("failed", "not run", "executed")
    assert read_runs(toy.root)[0].status == "FAILED"

    (toy.root / "fail.merge").unlink()
    code, output = toy.flows("run", "evaluation")
    assert code == 0, output
    assert toy.ran() == ["evaluation", "merge"]


@pytest.mark.parametrize("with_stage", [False, True], ids=["flow", "flow and stage"])
def test_killed_flow_goes_on_with_the_same_hashes(toy, done, with_stage):
    hold = toy.mark("hold.merge")
    process = toy.start("-m", "flows", "run")
    toy.until_it_runs("merge")
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()  # its children write to files, so this is the end of its output
    if with_stage:
        kill_all(children)
    hold.unlink()
    before = toy.ran()
    assert "merge" in before

    code, output = toy.flows("run")
    assert code == 0, output
    # The orphan finished, and its result was taken. Whether side comes before merge is open.
    lost = {"evaluation", "merge"} if with_stage else {"evaluation"}
    assert toy.ran() == sorted(lost | {"side"} - set(before))
    assert toy.lock() == done.lock()
    assert [run.status for run in read_runs(toy.root)] == ["KILLED", "FINISHED"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda one: one.name)
def test_a_signal_stops_stages_and_says_how_to_go_on(toy, number):
    """A terminal sends SIGINT to all processes of the flow's group."""
    toy.mark("slow.download", "600")  # more than PATIENCE
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # the tests may be in the background
    process = toy.start("-m", "flows", "run")
    signal.signal(signal.SIGINT, before)
    toy.until_it_runs("download")
    children = psutil.Process(process.pid).children(recursive=True)
    group = os.getpgid(process.pid)
    for pid in [process.pid, *(child.pid for child in children if number == signal.SIGINT)]:
        with suppress(ProcessLookupError):  # it has ended meanwhile
            if os.getpgid(pid) == group:
                os.kill(pid, number)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, output
    assert f"Stopping on {number.name}" in output
    assert "run the same again to go on from here" in output
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    assert [run.status for run in read_runs(toy.root)] == ["KILLED"]


def test_a_closed_terminal_stops_stages_too(toy):
    toy.mark("slow.download", "600")  # more than PATIENCE
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may be under nohup
    process = toy.start("-m", "flows", "run")
    signal.signal(signal.SIGHUP, before)
    toy.until_it_runs("download")
    children = psutil.Process(process.pid).children(recursive=True)
    process.stdout.close()  # nobody hears what it says any more
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=PATIENCE) != 0
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    assert [run.status for run in read_runs(toy.root)] == ["KILLED"]


def test_own_server_ends_with_a_killed_flow(tmp_path):
    """Without PREFECT_API_URL the flow starts a server, which must not outlive it."""
    code = (
        "import sys, time; from pathlib import Path; from flows.server import LocalServer\n"
        "server = LocalServer(Path(sys.argv[1])).start(); time.sleep(60)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(command, env={**environment, "PYTHONPATH": str(REPOSITORY)})

    def started() -> list[psutil.Process]:
        # A child that is forked and not yet a program of its own has its parent's command line.
        children = psutil.Process(process.pid).children()
        return [child for child in children if "flows.server" in child.cmdline()]

    wait_until(started)
    servers = started()
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(servers, timeout=60)
    assert alive == []


def test_own_server_listens_on_loopback_alone(prefect_server):
    port = urlsplit(prefect_server).port
    there = [one for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    assert {one.laddr.ip for one in there if one.laddr.port == port} == {HOST}


def test_wrong_input_is_told_before_anything_starts(toy):
    code, output = toy.flows("run", "mergee")
    assert code == 2
    assert "ovis-dag: dvc.yaml: there is no stage 'mergee'; there are: download, cut" in output
    code, output = toy.flows("run", "--cores", "0")
    assert code == 2
    assert output == (
        "ovis-dag: Invalid value for '--cores': 0 is not in the range x>=1;"
        " see ovis-dag run --help\n"
    )


def test_unreachable_tracking_store_is_told_soon_and_before_any_stage(toy):
    uri = "http://127.0.0.1:9"  # the discard port: nobody answers
    # MLflow's own number of retries takes more than four minutes; ours takes 15 s.
    code, output = toy.call("-m", "flows", "run", seconds=120, MLFLOW_TRACKING_URI=uri)
    assert code == 1
    refused = f"MLFLOW_TRACKING_URI={uri}: does not answer ([Errno 111] Connection refused)"
    assert output.splitlines()[-1] == f"ovis-dag: {refused}"
    assert toy.ran() == []


def test_unreachable_tracking_store_does_not_fail_a_run_with_nothing_to_do(done_toy):
    uri = "http://127.0.0.1:9"
    more = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    code, output = done_toy.call("-m", "flows", "run", **more)
    assert code == 0, output
    line = output.splitlines()[0]
    assert line.startswith(f"MLFLOW_TRACKING_URI={uri}: does not answer (")
    assert line.endswith("). The same again publishes the results")
    assert NOVEL in " ".join(output.split())


@pytest.fixture
def mlflow_server(tmp_path):
    """Give MLflow's own server, stopped, and its address; its store is `tmp_path`/mlflow.db.

    It wants the name admin and SECRET.
    """
    port = free_port()
    command = f"-m mlflow server --app-name basic-auth --host {HOST} --port {port} --workers 1"
    command += " --backend-store-uri"
    secrets = ("MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY")
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"} | dict.fromkeys(secrets, SECRET)
    server = Service(
        [sys.executable, *command.split(), f"sqlite:///{tmp_path}/mlflow.db"],
        tmp_path,
        os.environ | environment,
        tmp_path / "mlflow.log",
    )
    yield server, f"http://{HOST}:{port}"
    server.stop()


def start_and_wait(server: Service, url: str) -> None:
    def answers() -> bool:
        assert server.process.poll() is None, server.log.read_text()
        with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=10):
            return True
        return False

    server.start()
    wait_until(answers)


def test_mlflows_server_takes_results_of_those_who_know_a_password_also_after_it_died(
    toy, mlflow_server
):
    server, url = mlflow_server
    more = {"MLFLOW_TRACKING_URI": url, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    start_and_wait(server, url)
    user, password = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
    refused = f"MLFLOW_TRACKING_URI={url}: refuses this user (401): set {user} and {password}"
    for known in ({}, {user: "admin", password: "guessed"}):
        code, output = toy.call("-m", "flows", "run", **more, **known)
        assert (code, output) == (1, f"ovis-dag: {refused}\n")
    assert toy.ran() == []

    more |= {user: "admin", password: SECRET}
    hold = toy.mark("hold.evaluation")
    process = toy.start("-m", "flows", "run", **more)
    toy.until_it_runs("evaluation")
    server.kill(with_children=True)
    hold.unlink()
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    assert f"MLflow at {url} does not have this execution: " in output
    assert NOVEL in " ".join(output.split()) and "Done" in output
    start_and_wait(server, url)
    code, output = toy.call("-m", "flows", "run", **more)
    assert code == 0 and "Nothing to do" in output
    runs = read_runs(server.folder)
    assert [run.status for run in runs] == ["KILLED", "FINISHED"]
    assert runs[1].metrics["evaluation/detector/generalized/novel/bbox/AP50"] == 20.0


DIES = """
from unittest.mock import patch
from mlflow.exceptions import MlflowException
from requests.exceptions import HTTPError
from flows.cli import main
for where, error in (
    ("read_metrics", MlflowException("connection refused")),
    ("read_metrics", HTTPError("500 Server Error: for url")),  # as uploads of files fail
    ("close_abandoned", MlflowException("connection refused")),
):
    with patch(f"flows.tracking.{where}", side_effect=error):
        assert main(["run"]) == 0
"""


def test_mlflow_that_dies_with_nothing_to_do_is_told_in_one_line(done_toy):
    code, output = done_toy.call("-c", DIES)
    assert code == 0, output
    for told in (
        "does not have this execution: connection refused. Its results are in",
        "does not have this execution: 500 Server Error: for url. Its results are in",
        "connection refused. The same again publishes the results",
    ):
        assert output.count(told) == 1
    assert "Traceback" not in output
    assert " ".join(output.split()).count(NOVEL) == 3
    assert done_toy.ran() == []


def test_plan_is_printed_with_reasons(done_toy):
    done_toy.replace("factor: 2", "factor: 3")
    code, output = done_toy.flows("plan")
    assert code == 0
    assert "side must run side.factor: 2 → 3" in " ".join(output.split())
    assert "6 stages and shards: 5 up to date, 1 must run" in output
    assert json.dumps(done_toy.ran()) == "[]"
    terminal = {"LC_ALL": "C", "PYTHONUTF8": "0"}  # of ASCII
    code, output = done_toy.call("-m", "flows", "plan", **terminal)
    assert code == 0 and r"side.factor: 2 \u2192 3" in output
    code, output = done_toy.call("-m", "flows", "run", **terminal)
    assert code == 0, output
    assert json.dumps(done_toy.ran()) == '["side"]'
