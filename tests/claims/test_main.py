"""`python -m claims` is `ovis-dag claims`, by the code of the folder that it is called in."""

import subprocess
import sys

import pytest

from flows.cli import main
from tests.support.toy import write_empty_project


def test_the_module_takes_what_the_command_takes(repository):
    done = subprocess.run(
        [sys.executable, "-m", "claims", "1", "--table"],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    said = "ovis-dag: --table measures no seeds; see ovis-dag claims --help\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read: No such file"),
        ("", "expected stages, found None"),
        ("- a", "stages"),
    ],
)
def test_a_folder_without_comparators_is_one_line(tmp_path, monkeypatch, capsys, content, told):
    write_empty_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "comparators").mkdir()
        (tmp_path / "comparators/dvc.yaml").write_text(content)
    assert main(["claims", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ovis-dag: comparators/dvc.yaml: ") and told in line
