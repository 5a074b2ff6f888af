"""Reads and restores what a test can change in its process for the tests after it.

A stage's `main` sets torch's threads and algorithms for its own process; called by a test, it would
set them for all later tests. No module is imported for this: importing torch takes seconds, which
tests of the flows need not spend.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter, methodcaller
from types import ModuleType
from typing import Any
from zlib import crc32

ABSENT = object()
VARIABLE = "os.environ/"
OF_PYTEST = "PYTEST_CURRENT_TEST"  # pytest itself sets it in each phase of a test
MIXED = "mixed"  # torch cannot name a precision that was set both in its old and its new way
# torch's new switches of precision and their initial values, the wider before the narrower.
PRECISIONS = {
    "backends": "none",
    "backends.cudnn": "none",
    "backends.mkldnn": "none",
    "backends.cuda.matmul": "none",
    "backends.cudnn.conv": "tf32",
    "backends.cudnn.rnn": "tf32",
    "backends.mkldnn.matmul": "none",
    "backends.mkldnn.conv": "none",
    "backends.mkldnn.rnn": "none",
}

State = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """A setting of the whole process, or of its main thread."""

    module: str
    read: Callable[[ModuleType], Any]
    write: Callable[[ModuleType, Any], object]
    fresh: Any = ABSENT  # what the module's import sets; ABSENT: another value each time


def of_functions(module: str, read: str, write: str, fresh: Any = ABSENT) -> Setting:
    """Return the setting that two functions of a module read and write."""
    return Setting(
        module, methodcaller(read), lambda owner, value: getattr(owner, write)(value), fresh
    )


def of_attribute(module: str, name: str, fresh: Any) -> Setting:
    """Return the setting that is an attribute of a module."""
    return Setting(
        module, attrgetter(name), lambda owner, value: setattr(owner, name, value), fresh
    )


def _folder(os_module) -> str | None:
    try:
        return os_module.getcwd()
    except FileNotFoundError:  # it was removed
        return None


def _numpy_random(module) -> tuple:
    kind, keys, *more = module.get_state()
    return kind, tuple(keys.tolist()), *more


def _algorithms(torch) -> tuple[bool, bool]:
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    return torch.are_deterministic_algorithms_enabled(), warns


def _set_algorithms(torch, value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _precision(torch) -> tuple[str | bool, ...]:
    try:
        old = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        old = MIXED, MIXED
    return *old, *(attrgetter(name)(torch).fp32_precision for name in PRECISIONS)


def _set_precision(torch, value: tuple[str | bool, ...]) -> None:
    products, convolutions, *new = value
    if products != MIXED:  # the old switches first, because they also set new ones
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
    for name, precision in zip(PRECISIONS, new, strict=True):
        backend = attrgetter(name)(torch)
        if backend.fp32_precision != precision:
            backend.fp32_precision = precision


def _set_default_type(torch, name: str) -> None:
    torch.set_default_dtype(getattr(torch, name.removeprefix("torch.")))


def _set_default_device(torch, name: str) -> None:
    torch.set_default_device(None if name == "cpu" else name)  # None: no mode for each call


def _torch_random(torch) -> bytes:
    return torch.get_rng_state().numpy().tobytes()


def _set_torch_random(torch, value: bytes) -> None:
    torch.set_rng_state(torch.frombuffer(bytearray(value), dtype=torch.uint8))


SETTINGS = {
    "working directory": Setting("os", _folder, lambda module, path: module.chdir(path)),
    "import path": Setting(
        "sys", lambda module: tuple(module.path), lambda module, value: module.path.__init__(value)
    ),
    "random": of_functions("random", "getstate", "setstate"),
    "numpy.random": Setting(
        "numpy.random", _numpy_random, lambda module, value: module.set_state(value)
    ),
    "cv2 threads": of_functions("cv2", "getNumThreads", "setNumThreads", fresh=-1),  # its default
    "torch random": Setting("torch", _torch_random, _set_torch_random),
    "torch threads": of_functions(
        "torch", "get_num_threads", "set_num_threads", fresh=int(os.environ["OMP_NUM_THREADS"])
    ),
    "torch algorithms": Setting("torch", _algorithms, _set_algorithms, fresh=(False, False)),
    "torch memory": of_attribute(
        "torch.utils.deterministic", "fill_uninitialized_memory", fresh=True
    ),
    "torch gradients": of_functions("torch", "is_grad_enabled", "set_grad_enabled", fresh=True),
    "torch anomalies": of_functions(
        "torch", "is_anomaly_enabled", "set_anomaly_enabled", fresh=False
    ),
    "torch precision": Setting(
        "torch", _precision, _set_precision, fresh=("highest", True, *PRECISIONS.values())
    ),
    "torch type": Setting(
        "torch",
        lambda torch: str(torch.get_default_dtype()),
        _set_default_type,
        fresh="torch.float32",
    ),
    "torch device": Setting(
        "torch", lambda torch: str(torch.get_default_device()), _set_default_device, fresh="cpu"
    ),
    "cudnn enabled": of_attribute("torch.backends.cudnn", "enabled", fresh=True),
    "cudnn benchmark": of_attribute("torch.backends.cudnn", "benchmark", fresh=False),
    "cudnn deterministic": of_attribute("torch.backends.cudnn", "deterministic", fresh=False),
}


def read_state() -> State:
    """Return the value of every setting whose module is imported, and of every variable."""
    variables = {VARIABLE + key: value for key, value in os.environ.items() if key != OF_PYTEST}
    loaded = {
        name: setting.read(sys.modules[setting.module])
        for name, setting in SETTINGS.items()
        if setting.module in sys.modules
    }
    return variables | loaded


def changes(before: State, after: State) -> State:
    """Return the settings that differ, each with its value in `before`, or ABSENT."""
    names = before.keys() | after.keys()
    return {
        name: before.get(name, ABSENT)
        for name in names
        if before.get(name, ABSENT) != after.get(name, ABSENT)
    }


def write_state(values: State) -> None:
    """Set the settings in `values`; those that are ABSENT get the value of a fresh process."""
    for name, value in values.items():
        if name.startswith(VARIABLE):
            if value is ABSENT:
                os.environ.pop(name.removeprefix(VARIABLE), None)
            else:
                os.environ[name.removeprefix(VARIABLE)] = value
            continue
        setting = SETTINGS[name]
        wanted = setting.fresh if value is ABSENT else value
        module = sys.modules[setting.module]
        if wanted is not ABSENT and setting.read(module) != wanted:
            setting.write(module, wanted)


def seed_torch(key: str) -> None:
    """Seed the processor's generator of torch, if torch is imported, by `key`."""
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.manual_seed(crc32(key.encode()))
