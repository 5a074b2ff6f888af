"""The trained detectors as MLflow models: logged when they change, registered as `candidate`.

predict/served_model.py says what such a model is. A version carries the fingerprint of its weights,
text encoder, classes, prompts and settings of inference, so a result that is restored from the
cache finds its version.
"""

import json
import logging
import re
import shutil
import tempfile
import tomllib
import warnings
from importlib.metadata import version
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.models import ModelSignature
from mlflow.types.schema import Array, ColSpec, Object, ParamSchema, ParamSpec, Property, Schema
from safetensors import safe_open

from flows.graph import PREDICTOR
from flows.overlay import flatten
from flows.predictor import fingerprint, gather, measured_inference
from flows.table import OF_ANOTHER, read_results, read_supervision

ALIAS = "candidate"
FINGERPRINT = "fingerprint"
ARTIFACT = "predictor"  # predict/served_model.py takes it by this name
WEIGHTS = "detector.safetensors"  # of a predictor
CODE = ("stages/common", "stages/models")
SERVED = Path(__file__).parents[1] / "predict/served_model.py"
USE = (
    "Rows of `image` (the bytes of a JPEG or PNG) and `names` (any list) to rows of `instances`;"
    f" `make predict MODEL=models:/…@{ALIAS}` takes it too."
)
RLE = Object([Property("size", Array("long")), Property("counts", "string")])
INSTANCE = Object(
    [
        Property("name", "string"),
        Property("score", "double"),
        Property("bbox", Array("double")),
        Property("segmentation", RLE),
    ]
)
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec("binary", "image"), ColSpec(Array("string"), "names")]),
    outputs=Schema([ColSpec(Array(INSTANCE), "instances")]),
    params=ParamSchema(
        [ParamSpec("min_score", "double", 0.3), ParamSpec("allow_unknown", "boolean", False)]
    ),
)


def publish_model(root: Path, model: str, uri: str, run_id: str, description: str) -> str:
    """Make this repository's predictor the candidate; log it unless a version equals it.

    A new version belongs to the run, which MLflow ends when it logs a model. Returns its URI.

    Raises:
        ValueError: code or a file of the model is not in this repository.
    """
    mlflow.set_tracking_uri(uri)
    client, name, inference = MlflowClient(), f"ovis-dag-{model}", measured_inference(root)
    own = fingerprint(root, model, inference)
    same = client.search_model_versions(f"name = '{name}' and tags.{FINGERPRINT} = '{own}'")
    if same:
        found = same[0]
    else:
        source = _log(root, model, inference, run_id)
        found = mlflow.register_model(source, name, tags={FINGERPRINT: own})
        client.update_model_version(name, found.version, f"{USE}\n\n{description}")
    if numbers := _numbers(root, model):
        logged = str(found.source).removeprefix("models:/")
        mlflow.log_metrics(numbers, run_id=run_id, model_id=logged)
    if ALIAS not in found.aliases:
        client.set_registered_model_alias(name, ALIAS, found.version)
    return f"models:/{name}/{found.version}"


def _log(root: Path, model: str, inference: bytes, run_id: str) -> str:
    """Log the model with all that it needs and return its URI."""
    # Silences its notice that pip is not installed: requirements are pinned below.
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)
    packages = [*CODE, *_package_of_head(root / PREDICTOR[WEIGHTS].format(model=model), root)]
    with tempfile.TemporaryDirectory() as scratch, mlflow.start_run(run_id=run_id):
        folder = Path(scratch)
        gather(root, model, inference, folder / ARTIFACT)
        code = sorted({str(folder / Path(package).parts[0]) for package in packages})
        for package in packages:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(root / package, folder / package, ignore=ignored, dirs_exist_ok=True)
        for package in code:
            Path(package, "__init__.py").touch()
        with warnings.catch_warnings():
            # An example would be an image; the signature says what one looks like.
            warnings.filterwarnings("ignore", message=".*input example was not provided")
            info = mlflow.pyfunc.log_model(
                name=model,
                python_model=str(SERVED),
                artifacts={ARTIFACT: str(folder / ARTIFACT)},
                code_paths=code,
                signature=SIGNATURE,
                pip_requirements=_requirements(root),
            )
    return info.model_uri


def _package_of_head(weights: Path, root: Path) -> list[str]:
    """Return the folder of the module that the weights name as their region head, if they do.

    Raises:
        ValueError: it is no package of this repository, so the model could not be loaded elsewhere.
    """
    with safe_open(weights, framework="numpy") as file:  # "pt" imports torch, for 3 s
        module = json.loads(file.metadata()["facts"]).get("region_head")
    if module is None:
        return []
    package = module.rpartition(".")[0].replace(".", "/")
    if not package or not (root / package).is_dir():
        raise ValueError(
            f"its region head {module} is in no package of this repository, so it could not be"
            " loaded elsewhere; put it into comparators/<method>/"
        )
    return [package]


def _numbers(root: Path, model: str) -> dict[str, float]:
    """Return the model's metrics; none if data/evaluation may be of another model."""
    if read_supervision(root).get(model, OF_ANOTHER) == OF_ANOTHER:
        return {}
    results = flatten((read_results(root) or {}).get(model, {}), "/", f"evaluation/{model}/")
    return {key: float(value) for key, value in results if isinstance(value, int | float)}


def _requirements(root: Path) -> list[str]:
    """Return the installed versions of all that stages may import; for local builds the release."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in project["dependencies"]]
    return [f"{name}=={version(name).split('+')[0]}" for name in names]
