"""`python -m claims` is `ovis-dag claims`, by the code of the folder that it is called in."""

import subprocess
import sys


def test_the_module_takes_what_the_command_takes(repository):
    done = subprocess.run(
        [sys.executable, "-m", "claims", "1", "--table"],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    said = "ovis-dag: --table measures no seeds; see ovis-dag claims --help\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)
