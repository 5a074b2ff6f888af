"""An S3 bucket as DVC remote does what a shared folder does, and its failures are told apart."""

import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.dvc.project import load_graph
from flows.dvc.records import recorded
from flows.dvc.remote import (
    RemoteError,
    check_remote,
    fetch_result,
    pull_inputs,
    push_result,
    take_result,
)
from tests.support.fleet import clone_of
from tests.support.service import HOST, Service, free_port
from tests.support.toy import Toy, wait_until


@pytest.fixture
def server(tmp_path: Path, monkeypatch) -> Iterator[Service]:
    """Give an S3 server without buckets, whose address is the last word of its command."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    command = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(free_port())]
    service = Service(command, tmp_path, {"PATH": ""}, tmp_path / "s3.log")
    service.start()
    wait_until(lambda: _answers(service))
    yield service
    service.stop()


def _url(server: Service) -> str:
    return f"http://{HOST}:{server.command[-1]}"


def _ask(server: Service, method: str, path: str = "/") -> None:
    urllib.request.urlopen(urllib.request.Request(_url(server) + path, method=method)).close()


def _answers(server: Service) -> bool:
    assert server.process.poll() is None, server.log.read_text()
    try:
        _ask(server, "GET")
    except OSError:
        return False
    return True


def _use(server: Service, toy: Toy) -> Toy:
    toy.dvc("remote", "add", "--quiet", "--local", "--default", "store", "s3://ovis/a/prefix")
    toy.dvc("remote", "modify", "--local", "store", "endpointurl", _url(server))
    return toy


def test_a_bucket_carries_results_between_clones(done_toy, server):
    _ask(server, "PUT", "/ovis")
    toy = _use(server, done_toy)
    assert check_remote(toy.root) == "s3://ovis/a/prefix"
    assert not fetch_result(clone_of(toy, "early").root, "download")
    push_result(toy.root, "download")
    other = clone_of(toy, "other")
    assert fetch_result(other.root, "download")
    assert "is cached - skipping run" in other.dvc("repro", "-s", "download")
    recording = clone_of(toy, "recording")
    assert take_result(recording.root, load_graph(recording.root)["download"])
    assert recorded(recording.root, ["download"]) == recorded(toy.root, ["download"])
    assert not (recording.root / "data/download/parts").exists()

    partial = clone_of(toy, "partial")
    (partial.root / "dvc.lock").write_text(toy.lock())
    pull_inputs(partial.root, ["data/download/parts/a.txt"])
    assert [path.name for path in (partial.root / "data/download/parts").iterdir()] == ["a.txt"]
    with pytest.raises(RemoteError, match="s3://ovis/a/prefix"):
        pull_inputs(partial.root, ["data/cut/1.txt"])


def test_a_missing_bucket_and_a_server_that_is_away_are_told_apart(done_toy, server):
    toy = _use(server, done_toy)
    every: list[Callable] = [
        lambda: check_remote(toy.root),
        lambda: push_result(toy.root, "download"),
        lambda: fetch_result(clone_of(toy, "other").root, "download"),
    ]
    for action in every:
        with pytest.raises(RemoteError, match="there is no bucket ovis; mount or make it"):
            action()
    assert server.stop()
    for action in every:
        with pytest.raises(RemoteError, match=r"(?i)s3://ovis/a/prefix: .*connect"):
            action()
