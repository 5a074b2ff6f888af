"""`python -m stages.preflight vlm wspn …`: find wrong params and missing weights before a run.

A stage finds them too, but perhaps hours after the run began. Whether params and weights fit each
other is not checked here; a stage finds that out when it builds its network. `--folder` names the
project in a message, and may be given several times. With `--elsewhere`, stages run on other
machines, so neither files nor the environment are checked here.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

from stages.common.runtime.errors import refuse
from stages.common.runtime.params import (
    PARAMS_FILE,
    Section,
    environment_number,
    read_exactness,
    read_params,
    read_section,
    read_seed,
)

ROOT = Path(__file__).parents[1]
NUMBERS = ("OVIS_WORKERS", "OVIS_THREADS", "OVIS_PROCESSES", "OVIS_MICRO_BATCH")


def section_model(name: str) -> type[Section]:
    """Return the model of section x of params.yaml: `XParams` in the `params.py` of package x.

    Raises:
        ValueError: no package has this name.
    """
    # Found by its place: packages beside stages have sections too, and stages may not import them.
    homes = {file.parent.name: file.parts[-3] for file in sorted(ROOT.glob("*/*/params.py"))}
    if name not in homes:
        expected = ", ".join(sorted(homes))
        raise ValueError(f"'{name}' is no section of {PARAMS_FILE}; expected one of {expected}")
    module = import_module(f"{homes[name]}.{name}.params")
    return getattr(module, f"{name.title().replace('_', '')}Params")


def problems(names: Sequence[str], path: Path = PARAMS_FILE, elsewhere: bool = False) -> list[str]:
    """Return one message per problem in these sections of params.yaml and in the environment.

    What depends on this machine is left out if the stages run elsewhere.
    """
    found = _problems(lambda: (read_seed(path), read_exactness(path)))
    if not elsewhere:
        found += _problems(lambda: _check_environment(path))
    for name in names:
        found += _problems(partial(_check, name, path, elsewhere))
    return found


def _problems(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        return [str(error)]
    return []


def _check_environment(path: Path) -> None:
    """Check the environment variables of the stages; torch is imported only if DEVICE is set."""
    for name in NUMBERS:
        environment_number(name)
    if "DEVICE" in os.environ:
        from stages.common.runtime.devices import choose_device

        choose_device(read_exactness(path))


def _check(name: str, path: Path, elsewhere: bool) -> None:
    section = read_section(name, section_model(name), path)
    section.check_references(name, read_params(path), elsewhere)


def main() -> None:
    """Check the sections in each folder; fail with each problem and the first that has it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sections", nargs="*")
    parser.add_argument("--folder", action="append", type=Path, default=[])
    parser.add_argument("--elsewhere", action="store_true")
    options = parser.parse_args()
    told: dict[str, str] = {}
    folders = [folder.absolute() for folder in options.folder or [Path()]]
    for folder in folders:
        if not folder.is_dir():
            refuse(f"--folder {folder}: no such folder")
        os.chdir(folder)  # paths in params.yaml are relative to it
        for problem in problems(options.sections, elsewhere=options.elsewhere):
            told.setdefault(problem, f"{folder.name}: {problem}" if options.folder else problem)
    if told:
        refuse("\n".join(told.values()))


if __name__ == "__main__":
    main()
