"""The checks of tests/test_dag.py, on a separate package that is also called `stages`."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.closure import params_read

REPOSITORY = Path(__file__).parents[2]
FILES = {
    "stages/__init__.py": "",
    "stages/common/__init__.py": "",
    "stages/common/geometry/__init__.py": "",
    "stages/common/geometry/boxes.py": "import math\n",
    "stages/common/drawing/__init__.py": "",
    "stages/common/drawing/panels.py": "",
    "stages/wspn/__init__.py": "",
    "stages/wspn/__main__.py": "from stages.wspn import loss\n",
    "stages/wspn/loss.py": "from stages.common.geometry import boxes\nimport stages.loud.tool\n",
    "stages/loud/__init__.py": "VALUE = 1\n",
    "stages/loud/tool.py": "from stages.loud import VALUE\n",
    "dvc.yaml": """\
stages:
  wspn:
    foreach: {one: 1}
    do:
      cmd: python -m stages wspn ${item}
      deps:
        - data/proposals
        - requirements-stages.lock
        - stages/common/geometry
        - stages/loud
        - stages/wspn
""",
}


@pytest.fixture
def project(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def check(project: Path, old: str = "", new: str = "") -> list[str]:
    """Edit dvc.yaml and check it in another process, because this one has imported `stages`."""
    path = project / "dvc.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    code = "from tests.support.closure import *; print(*check_deps(Path()), sep='\\n', end='')"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=project,
        env={"PYTHONPATH": f"{project}:{REPOSITORY}", "PATH": ""},
        capture_output=True,
        check=True,
        text=True,
    ).stdout.splitlines()


def test_folders_that_hold_the_closure_are_enough(project):
    assert check(project) == []


def test_a_file_outside_them_is_named(project):
    assert check(project, "        - stages/loud\n") == [
        "dvc.yaml: wspn: no dep holds stages/loud/__init__.py",
        "dvc.yaml: wspn: no dep holds stages/loud/tool.py",
    ]


def test_so_are_a_folder_that_nothing_uses_and_a_lock_that_is_not_there(project):
    told = check(project, "requirements-stages.lock", "stages/common/drawing")
    assert told == [
        "dvc.yaml: wspn: stages/common/drawing is not used",
        "dvc.yaml: wspn: no dep is requirements-stages.lock",
    ]


def test_a_package_that_params_name_brings_what_it_imports(project):
    """Nobody imports it by name, so the import graph alone would miss it."""
    for kind, text in (("one", "from stages.kinds.one import heads\n"), ("two", "")):
        folder = project / "stages/kinds" / kind
        folder.mkdir(parents=True)
        for name in ("__init__", "heads"):
            (folder / f"{name}.py").write_text("")
        (folder / "network.py").write_text(f"{text}from stages.common.drawing import panels\n")
    (project / "stages/kinds/__init__.py").write_text("")
    told = check(project, "stages/loud\n", "stages/loud\n        - stages/kinds/${wspn.kind}\n")
    assert told == ["dvc.yaml: wspn: no dep holds stages/common/drawing/panels.py"]


def params_of(tmp_path, code: str) -> set[str]:
    (tmp_path / "code.py").write_text(code)
    return params_read(tmp_path, ["code.py"])


def test_sections_that_code_reads_are_found(tmp_path):
    assert params_of(tmp_path, "x = read_section('pseudo_boxes', Boxes)") == {"pseudo_boxes"}
    assert params_of(tmp_path, "x = params.read_section('pseudo_boxes', B), read_seed()") == {
        "pseudo_boxes",
        "seed",
    }
    assert params_of(tmp_path, "STAGE = 'a'\ndef f(): return read_section(STAGE, A)") == {"a"}
    assert params_of(tmp_path, "n = len(read_shards()), read_params()['more']") == {
        "shards",
        "more",
    }
    assert params_of(tmp_path, "split = read_split()") == {"evaluation.split"}
    option = "parser.add_argument('--section', default='b')\nread_section(options.section, B)"
    assert params_of(tmp_path, option) == {"b"}
    assert params_of(tmp_path, "x = other('pseudo_boxes')") == set()


@pytest.mark.parametrize(
    "code", ["read_section(name, Model)", "p = read_params()", "read_section(*both)"]
)
def test_a_read_that_cannot_be_told_is_an_error(tmp_path, code):
    with pytest.raises(ValueError, match=r"code\.py:2: cannot tell which section .* a literal"):
        params_of(tmp_path, "\n" + code)
