"""What a stage depends on is found in dvc.yaml, and compared by value or by file."""

import importlib.metadata
import os
from pathlib import Path

import pytest

from stages.guard import changes, find_declared, other_packages

PARAMS = """\
shards: [0, 1]
pseudo_boxes: {min_score: 0.3, size: {least: 2}}
seed: 0
engine: torchvision
"""
DVC_YAML = """\
vars:
  - shapes: [round, square]
stages:
  pseudo_boxes:
    matrix: {shard: "${shards}"}
    cmd: python -m stages pseudo_boxes ${item.shard}
    deps:
      - data/maps/${item.shard}.txt
      - engines/${engine}
    params: [pseudo_boxes, seed]
    outs: ["data/pseudo_boxes/${item.shard}.txt"]
  drawing:
    matrix: {shape: "${shapes}", shard: [0, 1]}
    cmd: x
    deps: ["data/${item.shape}-${item.shard}.txt"]
    params: [pseudo_boxes.size.least, other.yaml: [key]]
    outs: [x]
"""
CLAIMS = """\
stages:
  oracle:
    wdir: ..
    cmd: x
    deps: [data/maps]
    outs: [y]
  trained:
    foreach: {first: {shard: 0}, second: {shard: 1}}
    do:
      wdir: ..
      cmd: x
      deps: ["data/maps/${item.shard}.txt", "comparators/${key}"]
      outs: ["${key}"]
"""


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch) -> Path:
    for name, text in {
        "params.yaml": PARAMS,
        "other.yaml": "key: 1\n",
        "dvc.yaml": DVC_YAML,
        "comparators/dvc.yaml": CLAIMS,
        "data/maps/0.txt": "0",
        "data/maps/1.txt": "1",
        "data/round-1.txt": "",
        "comparators/second/method.yaml": "",
        "comparators/second/README.md": "one",
        "engines/torchvision/network.py": "one",
        "engines/torchvision/__pycache__/network.pyc": "one",
        "engines/detectron2/network.py": "two",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_references_are_filled_in():
    declared = find_declared("pseudo_boxes@1")
    assert declared.paths == ["data/maps/1.txt", "engines/torchvision"]
    inputs = declared.read()
    assert inputs.params == {"pseudo_boxes": {"min_score": 0.3, "size": {"least": 2}}, "seed": 0}
    assert set(inputs.files) == {
        "params.yaml",
        "data/maps/1.txt",
        "engines/torchvision/network.py",
    }
    drawing = find_declared("drawing@round-1")
    assert drawing.paths == ["data/round-1.txt", "other.yaml"]
    assert drawing.read().params == {"pseudo_boxes.size.least": 2}


@pytest.mark.parametrize("file", ["comparators/dvc.yaml:", "", "../comparators/dvc.yaml:"])
def test_a_stage_is_found_however_dvc_names_it(file):
    assert find_declared(f"{file}oracle").paths == ["data/maps"]


def test_of_a_foreach_it_is_the_one_of_that_name():
    declared = find_declared("comparators/dvc.yaml:trained@second")
    assert declared.paths == ["data/maps/1.txt", "comparators/second"]
    # .dvcignore leaves a method's README out
    assert set(declared.read().files) == {
        "params.yaml",
        "data/maps/1.txt",
        "comparators/second/method.yaml",
    }


def test_what_cannot_be_found_is_named(project):
    with pytest.raises(ValueError, match=r"dvc\.yaml: there is no stage 'box'"):
        find_declared("box")
    (project / "data/maps/1.txt").unlink()
    with pytest.raises(ValueError, match=r"pseudo_boxes@1: input data/maps/1\.txt of dvc\.yaml"):
        find_declared("pseudo_boxes@1")


def rewrite(path: str, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda: None, []),
        (lambda: rewrite("params.yaml", "shards", "# a remark\nshards"), []),
        (lambda: rewrite("params.yaml", "torchvision", "detectron2"), []),  # no param of it
        (
            lambda: rewrite("params.yaml", "0.3", "0.5"),
            ["params.yaml: pseudo_boxes.min_score: 0.3 → 0.5"],
        ),
        (lambda: rewrite("params.yaml", "seed: 0", "sead: 0"), ["params.yaml: seed: 0 → None"]),
        (lambda: rewrite("engines/torchvision/__pycache__/network.pyc", "o", "a"), []),
        (lambda: rewrite("data/maps/1.txt", "1", "2"), ["data/maps/1.txt"]),
        (lambda: Path("data/maps/0.txt").write_text("other shard"), []),
        (lambda: os.utime("data/maps/1.txt", (1, 1)), ["data/maps/1.txt"]),  # to and fro
        (lambda: Path("data/maps/1.txt").unlink(), ["data/maps/1.txt"]),
        (
            lambda: Path("engines/torchvision/new.py").touch(),
            ["engines/torchvision/new.py"],
        ),
    ],
)
def test_changes_are_those_of_what_the_stage_reads(edit, told):
    declared = find_declared("pseudo_boxes@1")
    before = declared.read()
    edit()
    assert changes(before, declared.read()) == told


def test_packages_are_those_of_the_lock(project):
    here = importlib.metadata.version("ruamel.yaml")
    (project / "pyproject.toml").write_text('[project]\ndependencies = ["ruamel.yaml>=0.1"]\n')
    lock = project / "requirements-stages.lock"
    lock.write_text(f"ruamel-yaml==0.1 ; python_full_version < '3'\nruamel-yaml=={here}\nsix==9\n")
    assert other_packages(project) == []
    lock.write_text(f"ruamel-yaml=={here}+cpu\n")  # another build of this version
    assert other_packages(project) == []
    lock.write_text("ruamel-yaml==0.1\n")
    assert other_packages(project) == [f"ruamel-yaml {here} is installed, 0.1 is locked"]
    lock.write_text("six==9\n")
    assert other_packages(project) == [f"ruamel-yaml {here} is installed, none is locked"]
