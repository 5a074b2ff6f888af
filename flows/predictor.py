"""Gathers predictors from this repository's results, or from a model in MLflow.

A predictor is a folder of five files that `python -m predict` takes
(stages/models/detection/predictor.py).
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from flows.dvc.records import recorded
from flows.environment import STATE_FOLDER
from flows.graph import MODELS, PREDICTOR
from flows.overlay import PARAMS, look_up, read_params
from flows.params_file import check_values

STAGE = "vocabulary"  # it embeds the class names, through the prompts
MEASURING = "evaluation"  # its section has the settings of inference
PROMPT_KEYS = ("encoder", "clip", "pooling", "all_forms", "normalise", "templates")
PROMPTS, INFERENCE = "prompts.json", "inference.json"
FOLDER_IN_MODEL = "artifacts/predictor"  # where an MLflow model keeps the folder


def is_complete(root: Path, model: str) -> bool:
    """Say whether the files of a predictor with the weights of stage `model` are there."""
    return all((root / path.format(model=model)).is_file() for path in PREDICTOR.values())


def fingerprint(root: Path, model: str, inference: bytes) -> str:
    """Return the hash of everything except code that decides what the predictor finds."""
    digest = hashlib.sha256(_prompts(root) + inference)
    for path in PREDICTOR.values():
        with (root / path.format(model=model)).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def gather(root: Path, model: str, inference: bytes, folder: Path) -> Path:
    """Put the predictor with stage `model`'s weights into `folder`, and return the folder."""
    sources = {name: root / path.format(model=model) for name, path in PREDICTOR.items()}
    missing = [str(path.relative_to(root)) for path in sources.values() if not path.is_file()]
    if missing:
        raise ValueError(f"{', '.join(missing)}: not there; `make repro` makes it")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, path in sources.items():
        try:
            os.link(path, folder / name)  # takes no space, if the disk supports it
        except OSError:
            shutil.copyfile(path, folder / name)
    (folder / PROMPTS).write_bytes(_prompts(root))
    (folder / INFERENCE).write_bytes(inference)
    return folder


def find(root: Path, model: str | None) -> Path:
    """Return the folder of a predictor; make or fetch it if needed.

    The model is "detector" or "finetune" of this repository, a folder, or the URI of an MLflow
    model (`models:/…`, `runs:/…`). The default is the best one that this repository has.
    """
    model = model or next((name for name in MODELS if is_complete(root, name)), MODELS[0])
    if model in MODELS:
        check_values(root, MEASURING)
        inference = _to_json(_current_inference(root))
        return gather(root, model, inference, root / STATE_FOLDER / "predictors" / model)
    if ":/" in model:
        return _fetch(root, model)
    folder = root / Path(model).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"--model {model}: expected {' or '.join(MODELS)}, a predictor's folder, or the URI of"
            " an MLflow model such as models:/ovis-dag-detector@candidate"
        )
    return folder


def _fetch(root: Path, uri: str) -> Path:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    folder = root / STATE_FOLDER / "predictors" / hashlib.sha256(uri.encode()).hexdigest()[:16]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        fetched = Path(download_artifacts(uri, dst_path=str(folder)))
    except MlflowException as error:
        raise ValueError(f"--model {uri}: {error}") from error
    if not (fetched / FOLDER_IN_MODEL).is_dir():
        raise ValueError(f"--model {uri}: an MLflow model of another kind")
    return fetched / FOLDER_IN_MODEL


def measured_inference(root: Path) -> bytes:
    """Return the settings of inference that the results in data/evaluation were made with.

    They are those of params.yaml if nothing has been evaluated.
    """
    entry = recorded(root, [MEASURING]).get(MEASURING, {})
    section = entry.get("params", {}).get(PARAMS, {}).get(MEASURING, {})
    return _to_json(section.get("inference") or _current_inference(root))


def _current_inference(root: Path) -> dict[str, Any]:
    inference = look_up(read_params(root), f"{MEASURING}.inference")
    if inference is None:
        raise ValueError(f"{PARAMS}: {MEASURING}.inference: is missing; predictors need it")
    return inference


def _prompts(root: Path) -> bytes:
    """Return the prompts that the weights were made with; params.yaml may have others by now."""
    entry = recorded(root, [STAGE]).get(STAGE, {})
    section = entry.get("params", {}).get(PARAMS, {}).get(STAGE, {})
    if not section.keys() >= set(PROMPT_KEYS):
        raise ValueError(f"dvc.lock: {STAGE}: has no {', '.join(PROMPT_KEYS)}; run `make repro`")
    return _to_json({key: section[key] for key in PROMPT_KEYS})


def _to_json(settings: dict[str, Any]) -> bytes:
    return json.dumps(settings, sort_keys=True, indent=1).encode()
