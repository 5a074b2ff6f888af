"""Every comparator is a folder that says what it is, and its params fit."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.common.runtime.params import read_section
from stages.preflight import section_model

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(path.parent for path in ROOT.glob("comparators/*/README.md"))
METHODS = sorted(ROOT.glob("comparators/*/method.yaml"))


def test_each_has_a_readme_and_code_or_a_method():
    programs = ROOT.glob("comparators/*/__main__.py")
    assert {path.parent for path in [*METHODS, *programs]} == set(FOLDERS)


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.parent.name)
def test_its_params_fit_those_of_the_experiment(path):
    content = YAML(typ="safe").load(path)
    assert list(content) == ["paper", "reported", "left_out", "params"]
    for section in content["params"]:
        assert read_section(section, section_model(section), ROOT / "params.yaml", path)
