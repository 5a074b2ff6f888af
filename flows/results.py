"""What dvc.lock and the files of stages say of an execution, in the names that MLflow takes."""

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from mlflow.entities import Dataset, DatasetInput, InputTag

from flows.graph import Stage
from flows.overlay import PARAMS, flatten

LONGEST_PARAM = 6000
SOURCE = "download"  # the stage that makes the data


def read_dataset(entry: dict) -> DatasetInput:
    """Return the data by the hashes that dvc.lock has of them."""
    hashes = "".join(f"{out['path']} {out['md5']}\n" for out in entry["outs"])
    digest = hashlib.md5(hashes.encode(), usedforsecurity=False).hexdigest()
    name = f"data/{SOURCE}"
    dataset = Dataset(name, digest, source_type="local", source=json.dumps({"uri": name}))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def read_params(entry: dict) -> Iterator[tuple[str, str]]:
    """Yield every leaf of the params in an entry of dvc.lock as dotted key and JSON text."""
    for key, value in flatten(entry.get("params", {}).get(PARAMS, {}), "."):
        text = value if isinstance(value, str) else json.dumps(value)
        yield legal(key), text[:LONGEST_PARAM]


def read_metrics(root: Path, stages: Iterable[Stage]) -> Iterator[tuple[str, float]]:
    """Yield every number of every JSON metrics file as `<stage>/<nested/key>`."""
    for stage in stages:
        for path in stage.metrics:
            if (root / path).is_file():
                content = json.loads((root / path).read_text(encoding="utf-8"))
                for key, value in flatten(content, "/"):
                    if isinstance(value, int | float):
                        yield f"{legal(stage.name)}/{legal(key)}", float(value)


def read_curves(root: Path, stages: Iterable[Stage]) -> Iterator[tuple[str, int, float]]:
    """Yield (key, step, value) of every CSV plot with a `step` column; empty cells are left out."""
    for stage in stages:
        for path in stage.plots:
            if Path(path).suffix != ".csv" or not (root / path).is_file():
                continue
            with (root / path).open(newline="", encoding="utf-8") as file:
                rows = csv.DictReader(file)
                if "step" not in (rows.fieldnames or ()):
                    continue
                for row in rows:
                    step = int(float(row.pop("step")))
                    for name, value in row.items():
                        if value:
                            yield f"{legal(stage.name)}/curve/{legal(name)}", step, float(value)


def legal(name: str) -> str:
    """Return a name that MLflow accepts: `pseudo_boxes@0` becomes `pseudo_boxes.0`."""
    return "".join(c if c.isalnum() or c in "_-. /" else "." for c in name)
