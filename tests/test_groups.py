"""Tests that share what is slow to make run in one worker."""

import os
import subprocess
import sys

TESTS = """
import os
from pathlib import Path
import pytest

@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(8))
def test_it(number):
    Path(f"worker-{number}").write_text(os.environ["PYTEST_XDIST_WORKER"])
"""


def test_one_worker_gets_all_tests_of_a_group(tmp_path):
    (tmp_path / "test_group.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "xdist", "-n", "2", "--dist", "loadgroup"]
    no_others = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # which take time to import
    subprocess.run(command, cwd=tmp_path, env=no_others, check=True)
    workers = [file.read_text() for file in tmp_path.glob("worker-*")]
    assert len(workers) == 8
    assert len(set(workers)) == 1
