"""What a process imports before it computes: torch would take seconds each time."""

import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
IMPORTED = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]; \
print('torch' in sys.modules)"


def imports_torch(modules: list[str]) -> bool:
    command = [sys.executable, "-c", IMPORTED, *modules]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip() == "True"


def test_sections_of_params_are_checked_without_it():
    files = [file.relative_to(ROOT) for file in ROOT.glob("*/*/params.py")]
    sections = [".".join(file.with_suffix("").parts) for file in files]
    assert "stages.wspn.params" in sections and "comparators.rpn.params" in sections
    assert not imports_torch(sections)


def test_stages_for_workers_without_a_gpu_do_without_it():
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    kinds = {name: stage["meta"]["pool"] for name, stage in stages.items()}
    without = [f"stages.{name}.__main__" for name, pool in kinds.items() if pool == "cpu"]
    assert len(without) > 5
    assert not imports_torch(without)
    assert imports_torch(["stages.detector.__main__"])
