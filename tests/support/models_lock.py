"""A dvc.lock of the stages that train and evaluate models, without the others."""

import json
from pathlib import Path

WEIGHTS = {model: f"data/{model}/model.safetensors" for model in ("detector", "finetune")}


def write_lock(folder: Path, evaluated: dict[str, str], started_from: str = "d2", **hashes) -> None:
    """Write a dvc.lock in which the models have md5 d2 and f2, filled up with zeros."""

    def files(**own: str) -> list[dict]:
        return [{"path": WEIGHTS[name], "md5": md5.ljust(32, "0")} for name, md5 in own.items()]

    def params(model: str, *names: str) -> dict:
        return {"params.yaml": {model: {"supervision": {"sources": [{"name": n} for n in names]}}}}

    results = [{"path": "data/evaluation/metrics.json", **hashes}]
    stages = {
        "detector": {
            "outs": files(detector="d2"),
            "params": params("detector", "masks", "phrases"),
        },
        "finetune": {
            "deps": files(detector=started_from),
            "outs": files(finetune="f2"),
            "params": params("finetune", "ground_truth"),
        },
        "evaluation": {"deps": files(**evaluated), "outs": results},
    }
    made = {name: {"cmd": f"make {name}", **own} for name, own in stages.items()}
    (folder / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": made}))
