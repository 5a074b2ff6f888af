"""A stage's training of a detector: resumed where it was stopped, then written to a folder."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from stages.common.runtime.checkpoints import Checkpoint, fingerprint
from stages.common.runtime.curves import Curve
from stages.common.runtime.processes import process_index
from stages.common.runtime.storage import write_json
from stages.models.detection.detector import Detector, save
from stages.models.detection.params import TrainingParams
from stages.models.detection.region_hooks import hook_files
from stages.models.detection.supervision import Supervision
from stages.models.detection.training import train_detector

STEPS_PER_ROW = 20  # of curve.csv


def train_and_save(
    output: Path,
    model: Detector,
    supervision: Supervision,
    params: TrainingParams,
    seed: int,
    vocabulary: Sequence[int] | None,
    settings: Any,
    inputs: Iterable[Path],
    section: str,
) -> None:
    """Train a detector and write model.safetensors, curve.csv and metrics.json.

    A run that was killed continues from its resume point. Of several processes, the first writes.

    Args:
        output: the folder to write to.
        model: with its initial weights, on its device.
        supervision: what to learn from; labels are 1-based positions in `vocabulary`.
        params: of the training.
        seed: of order, augmentation and sampling.
        vocabulary: class indices to choose from; all if None.
        settings: all else that the result depends on, as JSON values.
        inputs: all files that the result depends on, without those of the hooks.
        section: the section of params.yaml with `params`.

    Raises:
        ValueError: as `train_detector`.
    """
    hooks = [loss.module for loss in params.region_losses]
    hooks += [] if model.region_head is None else [model.region_head]
    name = fingerprint([settings, seed, model.device.type], [*inputs, *hook_files(hooks)])
    writes = process_index() == 0
    growing = output / "curve.csv" if writes else None
    checkpoint, curve = Checkpoint(name), Curve(STEPS_PER_ROW, growing)
    train_detector(model, supervision, params, seed, curve, vocabulary, checkpoint, section)
    if not writes:
        return
    save(output / "model.safetensors", model)
    curve.write(output / "curve.csv")
    write_json(output / "metrics.json", training_metrics(model, supervision, curve))
    checkpoint.remove()


def training_metrics(model: Detector, supervision: Supervision, curve: Curve) -> dict[str, Any]:
    """Return what metrics.json reports of a training: data, what was left out, last losses."""
    return {
        **supervision.facts(),
        "parameters": sum(p.numel() for p in model.parameters()),
        **curve.last(),
    }
