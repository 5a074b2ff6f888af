"""Every profile fits params.yaml, and every section of the result its model."""

import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows.overlay import apply_profile
from stages.common.params import read_section
from stages.preflight import section_model

ROOT = Path(__file__).parents[1]
PROFILES = sorted(path.stem for path in (ROOT / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_fit(profile, tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    assert apply_profile(tmp_path, profile)
    path = tmp_path / "params.yaml"
    for name, value in YAML(typ="safe").load(path).items():
        if isinstance(value, dict):
            read_section(name, section_model(name), path)


def test_the_paper_profiles_say_where_every_value_comes_from():
    for profile in ("paper-coco", "paper-coco-blip", "paper-open-images"):
        lines = (ROOT / f"experiments/{profile}.yaml").read_text().splitlines()
        values = [line for line in lines if ": " in line and not line.lstrip().startswith("#")]
        told = [line for line in values if "folder:" not in line and "extends:" not in line]
        assert [
            line for line in told if not any(w in line for w in ("# paper", "# code", "# ours"))
        ] == []
