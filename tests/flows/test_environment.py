"""What the folder and the environment of a project are called must not matter."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import make_url

from flows.cli import main
from flows.environment import (
    PERIOD,
    SECONDS,
    apply_settings,
    seconds,
    sqlite_path,
    without_user,
)
from flows.server import LocalServer
from tests.support.toy import REPOSITORY, write_empty_project

OPEN_STORE = """
import os
from pathlib import Path
from flows.environment import apply_settings
apply_settings(Path.cwd())
from flows.store import open_store
open_store(Path.cwd(), os.environ["MLFLOW_TRACKING_URI"])
"""


@pytest.fixture
def environment(monkeypatch):
    """Give an environment without settings, which is put back."""
    for name in list(os.environ):
        if name.startswith(("PREFECT_", "MLFLOW_")) or name.lower() == "no_proxy":
            monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return os.environ


@pytest.mark.parametrize("name", ["plain", "a%20b", "why?x=1", "50% off #1", "caf\u00e9 1"])
def test_a_folder_may_be_called_what_means_something_in_a_url(environment, tmp_path, name):
    root = tmp_path / name
    root.mkdir()
    apply_settings(root)
    uri = environment["MLFLOW_TRACKING_URI"]
    assert Path(make_url(uri).database) == sqlite_path(uri) == root / "mlflow.db"
    prefect = environment.get("PREFECT_SERVER_DATABASE_CONNECTION_URL")
    assert (prefect is None) == (name in ("plain", "caf\u00e9 1"))
    if prefect:
        assert Path(make_url(prefect).database) == root / ".prefect/prefect.db"


def test_mlflow_makes_its_database_in_such_a_folder(environment, tmp_path):
    root = tmp_path / "50%20 why?x=1#"
    root.mkdir()
    subprocess.run(
        [sys.executable, "-c", OPEN_STORE],
        cwd=root,
        env={**environment, "PYTHONPATH": str(REPOSITORY)},
        check=True,
    )
    assert {path.name for path in root.iterdir()} >= {"mlflow.db", "mlflow.db.lock"}
    assert [path.name for path in tmp_path.iterdir()] == [root.name]


@pytest.mark.parametrize("given", [None, "", "example.org,10.0.0.1"])
@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_no_proxy_stands_before_this_machine(environment, tmp_path, name, given):
    if given is not None:
        environment[name] = given
    apply_settings(tmp_path)
    hosts = [*(given or "").split(",")] * bool(given) + ["127.0.0.1", "localhost", "::1"]
    for either in ("no_proxy", "NO_PROXY"):
        assert environment[either].split(",") == hosts


def test_addresses_are_shown_without_their_password():
    assert without_user("https://me:pass@word@mlflow.example/team") == "https://mlflow.example/team"
    for uri in ("https://mlflow.example/a@b", "sqlite:////a@b/mlflow.db", "sqlite:///a@b.db"):
        assert without_user(uri) == uri


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_is_one_line(monkeypatch, capsys, number):
    def fail(root):
        raise OSError(number, os.strerror(number), ".flows/journal.jsonl")

    monkeypatch.setattr("flows.environment.apply_settings", fail)
    assert main(["plan"]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"ovis-dag: [Errno {number}]") and ".flows/journal.jsonl" in told
    assert told.count("\n") == 1 and told.endswith(" and run the same again\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("sqlite3.OperationalError: database or disk is full", "the disk is full; make room"),
        ("OSError: [Errno 28] No space left on device", "the disk is full; make room"),
        ("anything else", "ended with code 3; see "),
    ],
)
def test_a_server_that_dies_of_a_full_disk_says_so(environment, monkeypatch, tmp_path, words, told):
    """A program that says so and ends with 3 stands for the server."""
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\necho '{words}'\nexit 3\n")
    fake.chmod(0o755)
    log = tmp_path / ".flows/logs/prefect-server.log"
    log.parent.mkdir(parents=True)
    log.write_text("No space left on device, said a server before\n")
    monkeypatch.setattr(sys, "executable", str(fake))
    server = LocalServer(tmp_path).start()
    with pytest.raises(RuntimeError, match=told):
        server.wait_until_ready()


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("text", ["abc", "", "-1", "nan", "inf"])
def test_seconds_that_are_none_are_told_before_anything_runs(
    environment, tmp_path, monkeypatch, capsys, name, text
):
    write_empty_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    environment[name] = text
    assert main(["plan"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ovis-dag: {name}={text!r}: expected seconds from ")


def test_seconds_may_be_a_fraction(environment):
    environment.pop(PERIOD, None)
    assert seconds(PERIOD) == 300.0
    environment[PERIOD] = "1.5"
    assert seconds(PERIOD) == 1.5
