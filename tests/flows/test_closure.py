"""On a package of its own in a temporary folder, in a process of its own: it is called `stages`."""

import subprocess
import sys
from pathlib import Path

import pytest

from flows.closure import params_read

REPOSITORY = Path(__file__).parents[2]

FILES = {
    "stages/__init__.py": "",
    "stages/common/__init__.py": "",
    "stages/common/runtime/__init__.py": "",
    "stages/common/runtime/params.py": "def read_section(name, model): ...\n"
    "def read_params(): ...\n",
    "stages/common/geometry/__init__.py": "",
    "stages/common/geometry/boxes.py": "import math\n",
    "stages/common/unused.py": "",
    "stages/wspn/__init__.py": "",
    "stages/wspn/__main__.py": "from stages.common.runtime.params import read_section\n"
    "from stages.wspn import loss\nread_section('wspn', None)\n",
    "stages/wspn/loss.py": "from stages.common.geometry import boxes\nimport stages.loud.tool\n",
    "stages/loud/__init__.py": "VALUE = 1\n",
    "stages/loud/tool.py": "from stages.loud import VALUE\n",
    "dvc.yaml": """\
# The pipeline.
stages:
  wspn:  # trains
    matrix: {shard: "${shards}"}
    cmd: python -m stages wspn ${item.shard}
    deps:
      - data/proposals/${item.shard}.parquet  # boxes
      - stages/common/geometry/boxes.py
      - stages/common/unused.py
      - stages/wspn/__main__.py
    params: [wspn, seed]
    outs:
      - data/wspn/${item.shard}.json
  shell:
    cmd: echo hello
    outs:
      - hello.txt
""",
}


@pytest.fixture
def project(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def deps(project, mode: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-m", "flows", "deps", mode],
        cwd=project,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
        capture_output=True,
        text=True,
    )
    return done.returncode, (done.stdout + done.stderr).splitlines()


def test_check_names_what_is_lacking_and_what_is_stale(project):
    code, lines = deps(project, "--check")
    assert code == 1
    assert lines == [
        "dvc.yaml: wspn: deps lack stages/common/runtime/params.py; `make deps` mends it",
        "dvc.yaml: wspn: deps lack stages/loud/__init__.py; `make deps` mends it",
        "dvc.yaml: wspn: deps lack stages/loud/tool.py; `make deps` mends it",
        "dvc.yaml: wspn: deps lack stages/wspn/loss.py; `make deps` mends it",
        "dvc.yaml: wspn: deps have the unused stages/common/unused.py; `make deps` mends it",
    ]


def test_write_mends_only_that_and_keeps_data_order_and_comments(project):
    code, lines = deps(project, "--write")
    assert code == 0
    assert "wspn: + stages/loud/tool.py" in lines
    old = "      - stages/common/geometry/boxes.py\n      - stages/common/unused.py\n"
    new = [
        f"      - stages/{name}.py\n"
        for name in ("common/geometry/boxes", "common/runtime/params", "loud/__init__", "loud/tool")
    ]
    expected = FILES["dvc.yaml"].replace(old, "".join(new))
    expected = expected.replace(
        "wspn/__main__.py\n", "wspn/__main__.py\n      - stages/wspn/loss.py\n"
    )
    assert (project / "dvc.yaml").read_text() == expected
    assert deps(project, "--check")[0] == 0
    assert deps(project, "--write") == deps(project, "--check")


def test_a_stage_without_code_is_named(project):
    text = FILES["dvc.yaml"].replace("stages wspn", "stages wsp")
    (project / "dvc.yaml").write_text(text)
    code, lines = deps(project, "--check")
    assert code == 2
    assert "there is no module stages.wsp.__main__" in lines[0]


def params_of(tmp_path, code: str) -> set[str]:
    (tmp_path / "code.py").write_text(code)
    return params_read(tmp_path, ["code.py"])


def test_sections_that_code_reads_are_found(tmp_path):
    assert params_of(tmp_path, "x = read_section('boxes', Boxes)") == {"boxes"}
    assert params_of(tmp_path, "x = params.read_section('boxes', B), read_seed()") == {
        "boxes",
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
    assert params_of(tmp_path, "x = other('boxes')") == set()


@pytest.mark.parametrize(
    "code", ["read_section(name, Model)", "p = read_params()", "read_section(*both)"]
)
def test_a_read_that_cannot_be_told_is_an_error(tmp_path, code):
    with pytest.raises(ValueError, match=r"code\.py:2: cannot tell which section .* a literal"):
        params_of(tmp_path, "\n" + code)


def test_a_package_that_params_name_brings_what_it_imports(project):
    """Nobody imports it by name, so the import graph alone would miss it."""
    for kind, text in (("one", "from stages.kinds.one import heads\n"), ("two", "")):
        folder = project / "stages/kinds" / kind
        folder.mkdir(parents=True)
        for name in ("__init__", "heads"):
            (folder / f"{name}.py").write_text("")
        (folder / "network.py").write_text(f"{text}from stages.common import unused\n")
    (project / "stages/kinds/__init__.py").write_text("")
    path = project / "dvc.yaml"
    text = path.read_text().replace("  # boxes\n", "\n      - stages/kinds/${wspn.kind}\n")
    path.write_text(text)
    assert deps(project, "--write")[0] == 0
    assert deps(project, "--check")[0] == 0
    written = path.read_text()
    assert "- stages/kinds/${wspn.kind}\n" in written and "stages/kinds/one" not in written
    assert "- stages/common/unused.py\n" in written
