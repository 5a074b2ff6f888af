"""What `make pools` makes by Prefect's own commands, and whose pools it leaves alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.toy import PATIENCE, write_empty_project

pytestmark = [pytest.mark.usefixtures("prefect_server"), pytest.mark.xdist_group("prefect")]

FOREIGN = """
from prefect import get_client
from prefect.client.schemas.actions import WorkPoolCreate
with get_client(sync_client=True) as client:
    client.create_work_pool(WorkPoolCreate(name="ovis-dag-foreign", type="kubernetes"))
"""


OLD = """
from prefect.automations import Automation
from flows.workers.pools import LOST_RULE
rule = Automation.read(name=LOST_RULE)
rule.description = "of an older version"
rule.update()
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))


def python(folder: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "COLUMNS": "250"},  # of the tables
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return done.returncode, done.stdout + done.stderr


def test_prefects_own_commands_work_on_the_server_and_a_schedule_outlives_make_pools(repository):
    """With FastAPI 0.151 the server answers 422 to explicit nulls, which all of them send."""
    schedule = ("-m", "prefect", "deployment", "schedule")
    deployment = "ovis-dag-experiment/experiment"
    for arguments in (
        ("-m", "flows", "pools"),
        ("-c", OLD),
        (*schedule, "create", deployment, "--cron", "0 3 * * *"),  # as docs/cluster.md has it
        # Pools, deployments and the rule that are there are brought up to date.
        ("-m", "flows", "pools"),
    ):
        code, output = python(repository, *arguments)
        assert code == 0, output
    listed = {}
    for noun in ("deployment", "flow", "flow-run", "work-pool", "automation", "artifact"):
        code, listed[noun] = python(repository, "-m", "prefect", noun, "ls")
        assert code == 0, listed[noun]
    assert "ovis-dag-stage/gpu" in listed["deployment"]
    assert deployment in listed["deployment"]
    assert "ovis-dag-cpu" in listed["work-pool"]
    assert listed["automation"].count("ovis-dag: ") == 1
    assert "No heartbeat" in listed["automation"] and "older" not in listed["automation"]
    code, output = python(repository, *schedule, "ls", deployment)
    assert code == 0 and "0 3 * * *" in output, output


def test_a_pool_of_a_foreign_type_is_refused(tmp_path, monkeypatch, repository):
    monkeypatch.setenv("PYTHONPATH", str(repository))
    write_empty_project(tmp_path)
    deployment = "{name: foreign, work_pool: {name: ovis-dag-foreign}}"
    (tmp_path / "prefect.yaml").write_text(f"deployments: [{deployment}]")
    assert python(tmp_path, "-c", FOREIGN) == (0, "")
    for arguments in (["pools"], ["worker", "--pool", "foreign"]):
        code, output = python(tmp_path, "-m", "flows", *arguments)
        assert (code, output.count("\n")) == (2, 1), output
        assert "pool ovis-dag-foreign on Prefect's server is of type kubernetes" in output


def test_a_worker_of_a_pool_that_is_not_there_is_told_so(tmp_path, monkeypatch, repository):
    monkeypatch.setenv("PYTHONPATH", str(repository))
    write_empty_project(tmp_path)
    code, output = python(tmp_path, "-m", "flows", "worker", "--pool", "none")
    assert (code, output) == (
        2,
        "ovis-dag: Prefect's server has no pool ovis-dag-none; `make pools` makes it\n",
    )
