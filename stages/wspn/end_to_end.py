"""Training of the proposal network on an ImageNet backbone, all of it at once.

Step k draws its pictures, their views and dropout from (seed, k) alone, so a resumed run repeats an
uninterrupted one exactly. Pictures pass one by one and their gradients are added up: memory is that
of a single picture, whatever the batch. The views of the next ones are made meanwhile.

Shape legend: R proposals of one picture, C base classes, h w pixels of a view.
"""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from stages.common.checkpoints import Checkpoint
from stages.common.curves import Curve
from stages.common.devices import send
from stages.common.images import Picture
from stages.common.prefetch import prefetch
from stages.common.progress import track
from stages.common.seeding import derive_seed, numpy_generator
from stages.models.backbones.imagenet import freeze_stages
from stages.models.proposals.imagenet import ImagenetWspn
from stages.models.proposals.views import mirror_boxes, view_input
from stages.wspn.examples import thin_out
from stages.wspn.params import EndToEndParams, WspnParams
from stages.wspn.refine import picture_losses
from stages.wspn.stream import PictureStream

FIRST_RATE = 1 / 3  # of the learning rate, at the start of the warm-up (wetectron)
SECONDS_BETWEEN = 600.0  # a resume point of VGG16 has 1.1 GB


class Task(NamedTuple):
    """One picture of a step's batch, and what its random view is drawn from."""

    step: int
    place: int  # in the batch
    picture: Picture
    boxes_xyxy: np.ndarray  # float32 (R, 4), its proposals


class Example(NamedTuple):
    """One picture in a random view, on the processor."""

    step: int
    place: int
    pixels: torch.Tensor  # float32 (1, 3, h, w)
    boxes_xyxy: torch.Tensor  # float32 (R, 4), in pixels of the picture, mirrored if the view is
    view_boxes_xyxy: torch.Tensor  # float32 (R, 4), in pixels of the view
    labels: np.ndarray  # (C,)


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
            "no picture is labelled with a base class, so the proposal network has nothing to learn"
            " from; if captions name them, check `forms` in data/download/categories.json"
        )
    run = params.end_to_end
    freeze_stages(model.trunk, params.model.backbone.frozen_stages)
    optimizer = _optimizer(model, run)
    checkpoint = checkpoint or Checkpoint(None)
    done, state = checkpoint.restore(model, optimizer) or (0, curve.state())
    curve.restore(state)
    model.train()
    nothing = np.zeros(len(model.config.category_ids), np.float32)
    prepare = partial(_prepare, labels=labels, nothing=nothing, params=params, seed=seed)
    examples = prefetch(prepare, _tasks(pictures, range(done, run.steps), run.batch_size, seed))
    for step in track(range(done, run.steps), "wspn"):
        for group in optimizer.param_groups:
            group["lr"] = group["factor"] * learning_rate(run, step)
        optimizer.zero_grad(set_to_none=True)
        totals: dict[str, torch.Tensor] = {}
        for example in islice(examples, run.batch_size):
            for name, loss in _learn(model, example, params, seed).items():
                totals[name] = totals.get(name, 0.0) + loss / run.batch_size
        # One transfer: asking for each loss would wait for the device each time.
        sums = dict(zip(totals, torch.stack([*totals.values()]).tolist(), strict=True))
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


def _tasks(pictures: PictureStream, steps: range, batch_size: int, seed: int) -> Iterator[Task]:
    for step in steps:
        for place, (picture, boxes_xyxy) in enumerate(pictures.batch(step, batch_size, seed)):
            yield Task(step, place, picture, boxes_xyxy)


def _prepare(
    task: Task,
    labels: Mapping[int, np.ndarray],
    nothing: np.ndarray,
    params: WspnParams,
    seed: int,
) -> Example:
    """Draw the view of a picture and make it; a picture without captions has labels `nothing`."""
    picture, views = task.picture, params.end_to_end.views
    boxes = thin_out(task.boxes_xyxy, params.proposals_per_image, seed, picture.image_id)
    random = numpy_generator(seed, "wspn view", task.step, task.place)
    side = views.shorter_sides[random.integers(len(views.shorter_sides))]
    flip = views.flip and random.random() < 0.5
    pixels, scale = view_input(picture.decode(), side, views.longer_side, flip)
    seen, own = torch.from_numpy(boxes * scale), torch.from_numpy(boxes)
    if flip:
        seen, own = mirror_boxes(seen, pixels.shape[3]), mirror_boxes(own, picture.width)
    wanted = labels.get(picture.image_id, nothing)
    return Example(task.step, task.place, pixels, own, seen, wanted)


def _learn(
    model: ImagenetWspn, example: Example, params: WspnParams, seed: int
) -> dict[str, torch.Tensor]:
    """Add the gradient of one picture; return its losses, on the device."""
    run, device = params.end_to_end, model.device
    pixels, seen = send(example.pixels, device), send(example.view_boxes_xyxy, device)
    boxes = send(example.boxes_xyxy, device)
    # Dropout draws from the global generators, so each picture seeds them; fork_rng gives back the
    # caller's state.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, "wspn dropout", example.step, example.place))
        with torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bf16"):
            features = model.region_features(model.feature_map(pixels), seen)
        # The heads cost next to nothing, and scores that are near are equal in bfloat16, but seeds
        # go by their order.
        outputs = model.heads(features.float())
        losses = picture_losses(outputs, boxes, example.labels, run, params.seeds, params.localise)
        (sum(losses.values()) / run.batch_size).backward()
    return {name: loss.detach() for name, loss in losses.items()}


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
