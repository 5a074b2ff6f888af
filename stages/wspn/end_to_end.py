"""End-to-end training of the proposal network on an ImageNet backbone.

Step k draws its images, their views and dropout from (seed, k) alone, so a resumed run repeats an
uninterrupted one exactly. Images pass through the network one at a time and their gradients are
added, so memory does not grow with the batch. The next views are prepared meanwhile.

Each process takes its part of a batch. A loss is a mean over the images of the batch, and nothing
else couples images. Several processes therefore give the result of one, up to the rounding of sums.

Shape legend: R proposals of one image, C labelled classes, h w pixels of a view.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from itertools import islice
from operator import add
from typing import NamedTuple

import numpy as np
import torch

from stages.common.formats.images import EncodedImage
from stages.common.runtime.checkpoints import Checkpoint
from stages.common.runtime.curves import Curve
from stages.common.runtime.devices import autocast, send
from stages.common.runtime.prefetch import prefetch
from stages.common.runtime.processes import (
    add_by_name,
    add_gradients,
    own_places,
    process_index,
)
from stages.common.runtime.progress import track
from stages.common.runtime.seeding import derive_seed, numpy_generator
from stages.models.proposals.imagenet import ImagenetWspn, Outputs
from stages.models.proposals.params import ViewSettings
from stages.models.proposals.views import mirror_boxes, view_input
from stages.models.solver import make_optimizer, set_rate, step_decay
from stages.wspn.examples import limit_proposals, require_labels
from stages.wspn.params import EndToEndParams
from stages.wspn.stream import ImageStream

FIRST_RATE = 1 / 3  # of the learning rate, at the start of the warm-up (wetectron)
BIAS_FACTOR = 2.0  # of the learning rate (wetectron)
SECONDS_BETWEEN = 600.0  # between resume points; that of VGG16 has 1.1 GB


# Maps an image's outputs, boxes (R, 4) and labels (C,) to its weighted losses, to be summed.
Losses = Callable[[Outputs, torch.Tensor, np.ndarray], Mapping[str, torch.Tensor]]


class Task(NamedTuple):
    """One image of a step's batch; its random view is drawn from `step` and `place`."""

    step: int
    place: int  # in the batch
    image: EncodedImage
    boxes_xyxy: np.ndarray  # float32 (R, 4), its proposals


class ImageView(NamedTuple):
    """One image in a random view, on the CPU."""

    step: int
    place: int
    pixels: torch.Tensor  # float32 (1, 3, h, w)
    boxes_xyxy: torch.Tensor  # float32 (R, 4), in pixels of the image, mirrored with the view
    view_boxes_xyxy: torch.Tensor  # float32 (R, 4), in pixels of the view
    labels: np.ndarray  # (C,)


class ViewStream:
    """Training images in random views, with their proposals and labels."""

    def __init__(
        self,
        images: ImageStream,
        labels: Mapping[int, np.ndarray],
        num_classes: int,
        views: ViewSettings,
        proposals_per_image: int,
        seed: int,
    ) -> None:
        """Store the parts of the stream.

        Args:
            images: the training images with their proposals.
            labels: (C,) per image; an image that is missing here has no label.
            num_classes: C.
            views: sizes and mirroring that a view is drawn from.
            proposals_per_image: R is at most this; further proposals are dropped at random.
            seed: of the order of images, the views and the dropped proposals.

        Raises:
            ValueError: no image has a label.
        """
        require_labels(labels.values())
        self._images, self._labels, self._views = images, labels, views
        self._nothing = np.zeros(num_classes, np.float32)
        self._limit, self._seed = proposals_per_image, seed

    def examples(self, steps: range, batch_size: int) -> Iterator[ImageView]:
        """Yield this process's images of these steps; threads prepare the next ones meanwhile."""
        yield from prefetch(self._prepare, self._tasks(steps, batch_size))

    def _tasks(self, steps: range, batch_size: int) -> Iterator[Task]:
        places = own_places(batch_size)
        for step in steps:
            batch = self._images.batch(step, batch_size, self._seed)
            for place in places:
                yield Task(step, place, *batch[place])

    def _prepare(self, task: Task) -> ImageView:
        image, views = task.image, self._views
        boxes = limit_proposals(task.boxes_xyxy, self._limit, self._seed, image.image_id)
        random = numpy_generator(self._seed, "wspn view", task.step, task.place)
        side = views.shorter_sides[random.integers(len(views.shorter_sides))]
        flip = views.flip and random.random() < 0.5
        pixels, scale = view_input(image.decode(), side, views.longer_side, flip)
        seen, own = torch.from_numpy(boxes * scale), torch.from_numpy(boxes)
        if flip:
            seen, own = mirror_boxes(seen, pixels.shape[3]), mirror_boxes(own, image.width)
        wanted = self._labels.get(image.image_id, self._nothing)
        return ImageView(task.step, task.place, pixels, own, seen, wanted)


def train_end_to_end(
    model: ImagenetWspn,
    views: ViewStream,
    losses: Losses,
    run: EndToEndParams,
    seed: int,
    curve: Curve,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Train the model in place and leave it in evaluation mode.

    Args:
        model: the network with its initial weights, on the device to compute on.
        views: the training images.
        losses: computes the losses of one image.
        run: steps, batch size, optimizer and precision.
        seed: of dropout.
        curve: receives the losses of every step.
        checkpoint: resume point to restore and save; None: none.

    Raises:
        ValueError: a loss is not finite, or a batch has fewer images than there are processes.
    """
    optimizer = make_optimizer(model, run.weight_decay, run.momentum, vector_factor=BIAS_FACTOR)
    rate = step_decay(run.learning_rate, run.milestones, 0.1, run.warmup_steps, FIRST_RATE)
    checkpoint = checkpoint or Checkpoint(None)
    done, state = checkpoint.restore(model, optimizer) or (0, curve.state())
    curve.restore(state)
    model.train()
    steps = range(done, run.steps)
    examples = views.examples(steps, run.batch_size)
    count, first = len(own_places(run.batch_size)), process_index() == 0
    for step in track(steps, "wspn") if first else steps:
        set_rate(optimizer, rate(step))
        optimizer.zero_grad(set_to_none=True)
        totals: dict[str, torch.Tensor] = {}
        for example in islice(examples, count):
            found = _learn(model, example, losses, run.batch_size, run.precision == "bf16", seed)
            for name, loss in found.items():
                totals[name] = totals.get(name, 0.0) + loss / run.batch_size
        add_gradients(model.parameters())
        # One transfer, because each transfer waits for the device.
        own = dict(zip(totals, torch.stack([*totals.values()]).tolist(), strict=True))
        sums = add_by_name(own)  # an image without labels has fewer losses
        if not math.isfinite(sum(sums.values())):
            raise ValueError(
                f"the proposal network's losses of step {step + 1} are {sums}; lower"
                " wspn.end_to_end.learning_rate, or check wspn.model.backbone.weights"
            )
        optimizer.step()
        curve.add(step + 1, **{f"loss_{name}": loss for name, loss in sums.items()})
        if first:
            checkpoint.save(step + 1, model, optimizer, curve.state())
    model.eval()


def _learn(
    model: ImagenetWspn,
    example: ImageView,
    losses_of: Losses,
    batch_size: int,
    bfloat16: bool,
    seed: int,
) -> dict[str, torch.Tensor]:
    """Add the gradients of one image; return its losses, on the device."""
    device = model.device
    pixels, seen = send(example.pixels, device), send(example.view_boxes_xyxy, device)
    boxes = send(example.boxes_xyxy, device)
    # Dropout draws from the global generators, so they are seeded for each image; fork_rng restores
    # the caller's state.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, "wspn dropout", example.step, example.place))
        with autocast(device, bfloat16):
            features = model.region_features(model.feature_map(pixels), seen)
        # The heads stay in float32: they cost little, and bfloat16 would round close scores to
        # ties, which changes the order that seeds are chosen by.
        losses = losses_of(model.heads(features.float()), boxes, example.labels)
        (reduce(add, losses.values()) / batch_size).backward()
    return {name: loss.detach() for name, loss in losses.items()}
