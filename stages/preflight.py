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
from typing import Any

from stages.common.runtime.hub import find_hub_file
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
PACKAGES = ("stages", "comparators")
NUMBERS = ("OVIS_WORKERS", "OVIS_THREADS", "OVIS_PROCESSES", "OVIS_MICRO_BATCH")


def section_model(name: str) -> type[Section]:
    """Return the model of section x of params.yaml: `XParams` in the `params.py` of package x."""
    (home,) = (own for own in PACKAGES if (ROOT / own / name / "params.py").is_file())
    return getattr(import_module(f"{home}.{name}.params"), f"{name.title().replace('_', '')}Params")


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
    except (ValueError, FileNotFoundError) as error:
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
    params: Any = read_section(name, section_model(name), path)
    if name in ("detector", "finetune", "rpn"):
        _check_hooks(params, name)
    if name == "finetune":
        _check_training(params.training, path)
    if elsewhere:
        return
    if name == "vlm" and params.source != "train":
        from stages.vlm.pretrained import find_pretrained, read_vocabulary

        find_pretrained(params.source, params.pretrained)
        read_vocabulary(params.pretrained.vocabulary)
    if name == "vocabulary" and params.encoder == "clip":
        find_hub_file(params.clip.folder, "config.json", "vocabulary.clip.folder")
    if name == "wspn" and params.model.backbone.weights is not None:
        _check_imagenet(params.model.backbone, "wspn.model.backbone")
    if name in ("detector", "rpn") and params.init == "imagenet":
        _check_imagenet(params.imagenet, f"{name}.imagenet")


def _check_hooks(params: Any, section: str) -> None:
    if params.training.region_losses or getattr(params, "region_head", None) is not None:
        from stages.models.detection.region_hooks import check_hooks

        check_hooks(params, section)


def _check_training(training: Any, path: Path) -> None:
    from stages.models.detection.params import check_training, network_params

    detector = read_params(path).get("detector")
    architecture = detector.get("architecture") if isinstance(detector, dict) else None
    try:
        network = network_params(architecture)
    except ValueError as error:
        raise ValueError(f"{path}: detector.{error}") from None
    try:
        check_training(training, network)
    except ValueError as error:
        raise ValueError(f"{path}: finetune.{error}") from None


def _check_imagenet(weights: Any, key: str) -> None:
    from stages.models.backbones.imagenet import find_imagenet_weights

    find_imagenet_weights(Path(weights.weights), weights.sha256, key)


def main() -> None:
    """Check the sections in each folder; fail with each problem and the first that has it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sections", nargs="*")
    parser.add_argument("--folder", action="append", type=Path, default=[])
    parser.add_argument("--elsewhere", action="store_true")
    options = parser.parse_args()
    told: dict[str, str] = {}
    for folder in options.folder or [Path()]:
        os.chdir(folder)  # paths in params.yaml are relative to it
        for problem in problems(options.sections, elsewhere=options.elsewhere):
            told.setdefault(problem, f"{folder.name}: {problem}" if folder.name else problem)
    if told:
        raise SystemExit("\n".join(told.values()))


if __name__ == "__main__":
    main()
