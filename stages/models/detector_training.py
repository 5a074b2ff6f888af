"""Training of the detector, the same for pseudo-labels and for fine-tuning on base annotations.

Step k draws its pictures, their augmentation and torchvision's samples from (seed, k) alone, so a
resumed run repeats an uninterrupted one exactly.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from stages.common.checkpoints import Checkpoint
from stages.common.curves import Curve
from stages.common.detection_data import Annotations, LabelledPicture, batch_rows, training_sample
from stages.common.progress import track
from stages.common.seeding import derive_seed, numpy_generator
from stages.models.detector_settings import TrainingParams
from stages.models.mask_rcnn import MaskRcnn
from stages.models.solver import learning_rate, make_optimizer


def train_detector(
    model: MaskRcnn,
    pictures: Sequence[LabelledPicture],
    params: TrainingParams,
    seed: int,
    curve: Curve,
    vocabulary: Sequence[int] | None = None,
    checkpoint: Checkpoint | None = None,
    what: str = "detector",
) -> None:
    """Train in place, and leave the model in inference mode.

    Args:
        model: starting weights.
        pictures: at least one; their labels are 1-based positions in `vocabulary`.
        params: the run.
        seed: of order, augmentation and sampling.
        curve: takes the losses of every step.
        vocabulary: class indices that the softmax runs over; all if None.
        checkpoint: where to resume from and save to.
        what: the name in progress lines.
    """
    model.backbone.to(memory_format=torch.channels_last)  # a tenth faster on CPUs
    freeze(model, params)
    optimizer = make_optimizer(model, params)
    checkpoint = checkpoint or Checkpoint(None)
    done, curve_state = checkpoint.restore(model, optimizer) or (0, curve.state())
    curve.restore(curve_state)
    weights = params.loss_weights.model_dump()
    for step in track(range(done, params.steps), what):
        images, targets = _batch(model, pictures, params, step, seed)
        losses = _losses(
            model, images, targets, vocabulary, params, derive_seed(seed, "step", step)
        )
        total = sum(weights[name] * loss for name, loss in losses.items())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(params, step)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), params.gradient_clip)
        optimizer.step()
        curve.add(step + 1, **{f"loss_{name}": loss.item() for name, loss in losses.items()})
        checkpoint.save(step + 1, model, optimizer, curve.state())
    model.eval()


def training_metrics(
    model: MaskRcnn, pictures: Sequence[LabelledPicture], annotations: Annotations, curve: Curve
) -> dict[str, Any]:
    """Return what metrics.json tells of a training: data, what was left out, last losses."""
    return {
        "pictures": len(pictures),
        "objects": sum(len(entry.segmentations) for entry in pictures),
        "skipped": {reason: len(ids) for reason, ids in annotations.skipped.items()},
        "parameters": sum(p.numel() for p in model.parameters()),
        **curve.last(),
    }


def freeze(model: MaskRcnn, params: TrainingParams) -> None:
    """Put the model in training mode, but keep weights and batch statistics of `params.frozen`.

    Only the batch norms are put in inference mode: torchvision's proposal network gives no losses
    in that mode.
    """
    model.train()
    parts = model.parts()
    for name in params.frozen:
        parts[name].requires_grad_(False)
        for module in parts[name].modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _batch(
    model: MaskRcnn,
    pictures: Sequence[LabelledPicture],
    params: TrainingParams,
    step: int,
    seed: int,
) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    device = next(model.parameters()).device
    samples = [
        training_sample(
            pictures[row],
            numpy_generator(seed, "augmentation", step, place),
            params.flip,
            params.colour_jitter,
        )
        for place, row in enumerate(batch_rows(step, params.batch_size, len(pictures), seed))
    ]
    images = [image.to(device) for image, _ in samples]
    return images, [{k: v.to(device) for k, v in target.items()} for _, target in samples]


def _losses(
    model: MaskRcnn,
    images: list[torch.Tensor],
    targets: list[dict[str, torch.Tensor]],
    vocabulary: Sequence[int] | None,
    params: TrainingParams,
    seed: int,
) -> dict[str, torch.Tensor]:
    # torchvision samples anchors and regions with the global generator and takes no other, so each
    # step seeds it; fork_rng gives the caller's state back.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        with torch.autocast(
            images[0].device.type, torch.bfloat16, enabled=params.precision == "bf16"
        ):
            return model.losses(images, targets, vocabulary, params.background_weight)
