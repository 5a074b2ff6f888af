"""Training of the proposal network on an ImageNet backbone, all of it at once.

Step k draws its pictures, their views and dropout from (seed, k) alone, so a resumed run repeats an
uninterrupted one exactly. Pictures pass one by one and their gradients are added up: memory is that
of a single picture, whatever the batch.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from stages.common.checkpoints import Checkpoint
from stages.common.curves import Curve
from stages.common.images import Picture
from stages.common.progress import track
from stages.common.seeding import derive_seed, numpy_generator
from stages.models.imagenet import freeze_stages
from stages.models.wspn_imagenet import ImagenetWspn
from stages.models.wspn_input import mirror_boxes, view_input
from stages.wspn.examples import thin_out
from stages.wspn.params import EndToEndParams, WspnParams
from stages.wspn.refine import picture_losses
from stages.wspn.stream import PictureStream

FIRST_RATE = 1 / 3  # of the learning rate, at the start of the warm-up (wetectron)
SECONDS_BETWEEN = 600.0  # a resume point of VGG16 has 1.1 GB


def train_end_to_end(
    model: ImagenetWspn,
    pictures: PictureStream,
    labels: Mapping[int, np.ndarray],
    params: WspnParams,
    seed: int,
    curve: Curve,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Train in place, and leave the model in evaluation mode.

    Args:
        model: starting weights, on the device to compute on.
        pictures: to train with.
        labels: (C,) per picture; one without captions has none of the classes.
        params: section `wspn`.
        seed: of order, views and dropout.
        curve: takes the losses of every step.
        checkpoint: where to resume from and save to.

    Raises:
        ValueError: no picture has a label, or the loss is no number any more.
    """
    if not any(row.any() for row in labels.values()):
        raise ValueError(
            "no caption names a base class, so the proposal network has nothing to learn from;"
            " check `forms` in data/download/categories.json"
        )
    run = params.end_to_end
    freeze_stages(model.trunk, params.model.backbone.frozen_stages)
    optimizer = _optimizer(model, run)
    checkpoint = checkpoint or Checkpoint(None)
    done, state = checkpoint.restore(model, optimizer) or (0, curve.state())
    curve.restore(state)
    model.train()
    for step in track(range(done, run.steps), "wspn"):
        for group in optimizer.param_groups:
            group["lr"] = group["factor"] * learning_rate(run, step)
        optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        batch = pictures.batch(step, run.batch_size, seed)
        for place, (picture, boxes) in enumerate(batch):
            boxes = thin_out(boxes, params.proposals_per_image, seed, picture.image_id)
            losses = _learn(model, picture, boxes, labels, params, (seed, step, place))
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + loss / run.batch_size
        if not math.isfinite(sum(sums.values())):
            raise ValueError(
                f"the proposal network's losses of step {step + 1} are {sums}; lower"
                " wspn.end_to_end.learning_rate, or check wspn.model.backbone.weights"
            )
        optimizer.step()
        curve.add(step + 1, **{f"loss_{name}": loss for name, loss in sums.items()})
        checkpoint.save(step + 1, model, optimizer, curve.state())
    model.eval()


def learning_rate(run: EndToEndParams, step: int) -> float:
    """Return the rate of a 0-based step: linear warm-up, and a tenth from each milestone on."""
    warmup = min(1.0, FIRST_RATE + (1 - FIRST_RATE) * step / max(run.warmup_steps, 1))
    return run.learning_rate * warmup * 0.1 ** sum(step >= at for at in run.milestones)


def _learn(
    model: ImagenetWspn,
    picture: Picture,
    boxes_xyxy: np.ndarray,
    labels: Mapping[int, np.ndarray],
    params: WspnParams,
    keys: tuple[int, int, int],
) -> dict[str, float]:
    """Add the gradient of one picture in a random view; return its losses."""
    run, device = params.end_to_end, model.device
    seed, step, place = keys
    random = numpy_generator(seed, "wspn view", step, place)
    side = run.views.shorter_sides[random.integers(len(run.views.shorter_sides))]
    flip = run.views.flip and random.random() < 0.5
    pixels, scale = view_input(picture.decode(), side, run.views.longer_side, flip)
    seen = torch.from_numpy(boxes_xyxy * scale)
    if flip:
        seen = mirror_boxes(seen, pixels.shape[3])
        boxes_xyxy = mirror_boxes(torch.from_numpy(boxes_xyxy), picture.width).numpy()
    wanted = labels.get(picture.image_id, np.zeros(len(model.config.category_ids), np.float32))
    # Dropout draws from the global generator, so each picture seeds it; fork_rng gives back the
    # caller's state.
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "wspn dropout", step, place))
        with torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bf16"):
            features = model.region_features(model.feature_map(pixels.to(device)), seen.to(device))
            outputs = model.heads(features)
        losses = picture_losses(outputs, boxes_xyxy, wanted, run, params.seeds, params.localise)
        (sum(losses.values()) / run.batch_size).backward()
    return {name: loss.item() for name, loss in losses.items()}


def _optimizer(model: nn.Module, run: EndToEndParams) -> torch.optim.SGD:
    """Biases learn at twice the rate and without decay. Source: wetectron."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "factor": 1.0},
        {"params": [p for p in trained if p.ndim <= 1], "factor": 2.0, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        groups, run.learning_rate, momentum=run.momentum, weight_decay=run.weight_decay
    )
