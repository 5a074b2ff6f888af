"""The stage `detector` run whole, and killed and resumed: both have to write the same bytes."""

from pathlib import Path

import pytest

import stages.detector.__main__ as stage
from stages.common.runtime import checkpoints
from stages.common.runtime.curves import Curve
from stages.common.runtime.storage import read_tensors
from stages.models.detection import training_run
from stages.models.detection.samples import batch_rows

TRAINING_FILES = ("model.safetensors", "metrics.json", "curve.csv")


def read_training(folder: str) -> list[bytes]:
    """Return what a training wrote."""
    return [Path(folder, name).read_bytes() for name in TRAINING_FILES]


def check_that_it_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train for six steps by this folder's params.yaml, whole and killed; compare the bytes."""
    stage.main()
    expected = read_training("data/detector")
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 0.0)

    class KilledError(Exception):
        pass

    class DyingCurve(Curve):
        def add(self, step, **scalars):
            if step == 4:
                raise KilledError
            return super().add(step, **scalars)

    monkeypatch.setattr(training_run, "Curve", DyingCurve)
    monkeypatch.setattr("sys.argv", ["detector", "--output", "data/again"])
    with pytest.raises(KilledError):
        stage.main()
    (state,) = Path(".resume").glob("*/state.safetensors")
    assert read_tensors(state)[1]["step"] == 3
    started = []
    monkeypatch.setattr(training_run, "Curve", Curve)
    monkeypatch.setattr(
        "stages.models.detection.supervision.batch_rows",
        lambda step, *rest: started.append(step) or batch_rows(step, *rest),
    )
    stage.main()
    assert started == [3, 4, 5]
    assert read_training("data/again") == expected
    assert not list(Path(".resume").glob("*"))
