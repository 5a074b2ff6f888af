"""A test finds its process as if it ran alone, whatever the tests before it did."""

import json
import os
import subprocess
import sys

BREAK = """
import os
import random
import sys

import numpy
import pytest


def set_everything(folder):
    import cv2
    import torch

    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ["LEFT"] = "behind"
    del os.environ["KEPT"]
    random.seed(1)
    numpy.random.seed(1)
    torch.manual_seed(1)
    torch.set_num_threads(3)
    cv2.setNumThreads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.deterministic = torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.fp32_precision = "tf32"
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)


def test_importing_torch(tmp_path):
    assert "torch" not in sys.modules and "cv2" not in sys.modules
    set_everything(tmp_path)


def test_with_torch_imported(tmp_path):
    set_everything(tmp_path)


def test_from_a_folder_that_is_gone(tmp_path):
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()


@pytest.fixture(scope="module")
def of_module():
    import torch

    os.environ["OF_MODULE"] = "set"
    torch.set_default_dtype(torch.float64)


@pytest.fixture(scope="session")
def of_session():
    os.environ["OF_SESSION"] = "set"


@pytest.mark.parametrize("time", [1, 2])
def test_what_a_module_set_holds_for_all_of_it(of_module, time):
    import torch

    assert os.environ["OF_MODULE"] == "set" and torch.get_default_dtype() == torch.float64


@pytest.mark.parametrize("time", [1, 2])
def test_what_a_session_set_holds_though_a_test_asked_for_it(request, time):
    request.getfixturevalue("of_session")
    assert os.environ["OF_SESSION"] == "set"
"""

LOOK = """
import json
import os
import random
import sys
from pathlib import Path

import numpy

random.seed(5)
numpy.random.seed(5)


def test_look():
    import cv2
    import torch

    backends = torch.backends
    tensor = torch.ones(1, requires_grad=True) * 2
    names = ("KEPT", "LEFT", "OF_MODULE")
    seen = {
        "drawn": [random.random(), numpy.random.random()],
        "folder": os.getcwd(),
        "import path": sys.path,
        "variables": [os.environ.get(name) for name in names],
        "threads": [torch.get_num_threads(), cv2.getNumThreads()],
        "algorithms": torch.get_deterministic_debug_mode(),
        "memory": torch.utils.deterministic.fill_uninitialized_memory,
        "cudnn": [backends.cudnn.deterministic, backends.cudnn.benchmark],
        "old precision": [torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32],
        "new precision": [
            backend.fp32_precision
            for backend in (backends, backends.cuda.matmul, backends.mkldnn.matmul, backends.cudnn)
        ],
        "tensor": [str(tensor.dtype), str(tensor.device), tensor.requires_grad],
    }
    Path("seen.json").write_text(json.dumps(seen))


def test_draw():
    import torch

    Path("drawn.json").write_text(json.dumps(torch.rand(2).tolist()))
"""


def test_a_test_sees_and_draws_after_others_what_it_does_alone(tmp_path, repository):
    (tmp_path / "test_1_break.py").write_text(BREAK)
    (tmp_path / "test_2_look.py").write_text(LOOK)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:randomly"]
    environment = {**os.environ, "PYTHONPATH": str(repository), "KEPT": "kept"}

    def seen_after(*files: str) -> list:
        done = subprocess.run(
            [*command, *files], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads((tmp_path / name).read_text()) for name in ("seen.json", "drawn.json")]

    alone = seen_after("test_2_look.py")
    assert seen_after("test_1_break.py", "test_2_look.py") == alone
    assert alone[0]["variables"] == ["kept", None, None]
