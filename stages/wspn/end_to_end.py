"""Training of the proposal network on an ImageNet backbone, all of it at once.

Step k draws its images, their views and dropout from (seed, k) alone, so a resumed run repeats an
uninterrupted one exactly. Images pass one by one and their gradients are added up: memory is that
of a single image, whatever the batch. The views of the next ones are made meanwhile.

Each process takes its part of a batch. A loss is a mean over all images of the batch, and nothing
else depends on several of them, so processes repeat one process up to the rounding of sums.

Shape legend: R proposals of one image, C base classes, h w pixels of a view.
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
from stages.common.runtime.devices import send
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
from stages.models.proposals.views import ViewSettings, mirror_boxes, view_input
from stages.models.solver import make_optimizer, set_rate, step_decay
from stages.wspn.examples import thin_out
from stages.wspn.params import EndToEndParams
from stages.wspn.stream import ImageStream

FIRST_RATE = 1 / 3  # of the learning rate, at the start of the warm-up (wetectron)
BIAS_FACTOR = 2.0  # of the learning rate (wetectron)
SECONDS_BETWEEN = 600.0  # a resume point of VGG16 has 1.1 GB


# Of an image's outputs, its boxes (R, 4) and labels (C,): weighted losses, to be added.
Losses = Callable[[Outputs, torch.Tensor, np.ndarray], Mapping[str, torch.Tensor]]


class Task(NamedTuple):
    """One image of a step's batch, and what its random view is drawn from."""

    step: int
    place: int  # in the batch
    image: EncodedImage
    boxes_xyxy: np.ndarray  # float32 (R, 4), its proposals


class ImageView(NamedTuple):
    """One image in a random view, on the processor."""

    step: int
    place: int
    pixels: torch.Tensor  # float32 (1, 3, h, w)
    boxes_xyxy: torch.Tensor  # float32 (R, 4), in pixels of the image, mirrored if the view is
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
        """Put the parts together.

        Args:
            images: to train with.
            labels: (C,) per image; one without captions has none of the classes.
            num_classes: C.
            views: what a view is drawn from.
            proposals_per_image: more are left out.
            seed: of order and views.

        Raises:
            ValueError: no image has a label.
        """
        if not any(row.any() for row in labels.values()):
            raise ValueError(
                "no image is labelled with a base class, so the proposal network has nothing to"
                " learn from; if captions name them, check `forms` in data/download/categories.json"
            )
        self._images, self._labels, self._views = images, labels, views
        self._nothing = np.zeros(num_classes, np.float32)
        self._limit, self._seed = proposals_per_image, seed

    def examples(self, steps: range, batch_size: int) -> Iterator[ImageView]:
        """Yield this process's images of these steps, the next ones being prepared meanwhile."""
        yield from prefetch(self._prepare, self._tasks(steps, batch_size))

    def _tasks(self, steps: range, batch_size: int) -> Iterator[Task]:
        places = own_places(batch_size)
        for step in steps:
            batch = self._images.batch(step, batch_size, self._seed)
            for place in places:
                yield Task(step, place, *batch[place])

    def _prepare(self, task: Task) -> ImageView:
        image, views = task.image, self._views
        boxes = thin_out(task.boxes_xyxy, self._limit, self._seed, image.image_id)
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
    """Train in place, and leave the model in evaluation mode.

    Args:
        model: starting weights, on the device to compute on.
        views: to train with.
        losses: of one image.
        run: steps, batches, optimizer and precision.
        seed: of dropout.
        curve: takes the losses of every step.
        checkpoint: where to resume from and save to.

    Raises:
        ValueError: the loss is no number any more, or a batch has less images than processes.
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
        # One transfer: asking for each loss would wait for the device each time.
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
    """Add the gradient of one image; return its losses, on the device."""
    device = model.device
    pixels, seen = send(example.pixels, device), send(example.view_boxes_xyxy, device)
    boxes = send(example.boxes_xyxy, device)
    # Dropout draws from the global generators, so each image seeds them; fork_rng gives back the
    # caller's state.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, "wspn dropout", example.step, example.place))
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            features = model.region_features(model.feature_map(pixels), seen)
        # The heads cost next to nothing, and scores that are near are equal in bfloat16, but seeds
        # go by their order.
        losses = losses_of(model.heads(features.float()), boxes, example.labels)
        (reduce(add, losses.values()) / batch_size).backward()
    return {name: loss.detach() for name, loss in losses.items()}
