"""Training of the detector, the same for pseudo-labels and for fine-tuning on base annotations.

Step k draws its images, their augmentation and torchvision's samples from (seed, k) alone. So a
resumed run repeats an uninterrupted one exactly, and several processes or micro-batches repeat one
process up to rounding (`stages.models.detection.global_batch`).
"""

from collections.abc import Generator, Iterator, Sequence
from functools import reduce
from operator import add

import torch
from torch import nn

from stages.common.runtime.checkpoints import Checkpoint
from stages.common.runtime.curves import Curve
from stages.common.runtime.devices import autocast, send
from stages.common.runtime.params import PARAMS_FILE, environment_number
from stages.common.runtime.prefetch import prefetch
from stages.common.runtime.processes import (
    add_gradients,
    add_over_processes,
    num_processes,
    own_places,
    process_index,
)
from stages.common.runtime.progress import track
from stages.common.runtime.seeding import derive_seed, numpy_generator
from stages.models.detection.detector import Detector, LossSettings, Targets
from stages.models.detection.global_batch import (
    BatchContext,
    MicroBatchContext,
    PartContext,
    prepare_contexts,
    sync_batch_norms,
    trained_batch_norms,
)
from stages.models.detection.params import TrainingParams, check_training
from stages.models.detection.region_hooks import find_region_losses
from stages.models.detection.samples import training_sample
from stages.models.detection.supervision import Supervision
from stages.models.solver import Schedule, cosine, make_optimizer, set_rate, step_decay

MICRO_BATCH = "OVIS_MICRO_BATCH"  # images at once per process; gradients are accumulated
USUAL_MICRO_BATCH = 8
BATCHES_AHEAD = 3
LAST_RATE = 0.02  # at the end of the cosine, as a fraction of the learning rate
Samples = list[tuple[torch.Tensor, dict[str, torch.Tensor]]]


def train_detector(
    model: Detector,
    supervision: Supervision,
    params: TrainingParams,
    seed: int,
    curve: Curve,
    vocabulary: Sequence[int] | None = None,
    checkpoint: Checkpoint | None = None,
    section: str = "detector",
) -> None:
    """Train in place, and leave the model in inference mode.

    Args:
        model: with its initial weights.
        supervision: what to learn from; labels are 1-based positions in `vocabulary`.
        params: of the run.
        seed: of order, augmentation and sampling.
        curve: records the losses of every step.
        vocabulary: class indices to choose from; all if None.
        checkpoint: where to resume from and save to; None saves nothing.
        section: the section of params.yaml with `params`, for progress lines and errors.

    Raises:
        ValueError: the model does not support the sources, OVIS_MICRO_BATCH or the number of
            processes does not fit the run, or a loss is not finite.
    """
    for part in (model.backbone, model.region_stage):  # a tenth faster on CPUs
        if part is not None:
            part.to(memory_format=torch.channels_last)
    try:
        check_training(params, model.params)
    except ValueError as error:
        raise ValueError(f"{PARAMS_FILE}: {section}.{error}") from None
    if supervision.weighted and not model.supports("object_weights"):
        raise ValueError(
            f"{model.architecture} cannot weigh objects; set each weight in supervision.sources to"
            " 1 and weigh_by_score to false"
        )
    if supervision.partial and not model.supports("partial_labels"):
        raise ValueError(
            f"{model.architecture} treats classes without a label in an image as absent; set"
            " negatives to all in each of supervision.sources"
        )
    freeze(model, params)
    further_losses = find_region_losses(params.region_losses, section)
    settings = LossSettings(vocabulary, params.background_weight, further_losses)
    size = _micro_batch_size(model, params)
    sync_batch_norms(model)
    optimizer = make_optimizer(
        model,
        params.weight_decay,
        momentum=getattr(params.optimizer, "momentum", None),
        vector_factor=params.bias_rate_factor,
    )
    rate = make_schedule(params)
    checkpoint = checkpoint or Checkpoint(None)
    done, curve_state = checkpoint.restore(model, optimizer) or (0, curve.state())
    curve.restore(curve_state)
    weights = params.loss_weights | {loss.name: loss.weight for loss in params.region_losses}
    first = process_index() == 0
    steps = range(done, params.steps)
    batches = _batches(model, supervision, params, steps, seed)
    for step in track(steps, section) if first else steps:
        samples = next(batches)
        optimizer.zero_grad(set_to_none=True)
        sums: dict[str, torch.Tensor] = {}
        # torchvision's samplers use only the global generator, so each step seeds it; fork_rng
        # restores the caller's state.
        step_seed = derive_seed(seed, "step", step)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(step_seed)
            for images, targets, context in _micro_batches(model, samples, size, params, step_seed):
                with autocast(images[0].device, params.precision == "bf16"):
                    losses = model.losses(images, targets, settings, context)
                reduce(add, (weights[name] * loss for name, loss in losses.items())).backward()
                for name, loss in losses.items():
                    sums[name] = sums.get(name, 0) + loss.detach()
        add_gradients(model.parameters())
        set_rate(optimizer, rate(step))
        nn.utils.clip_grad_norm_(model.parameters(), params.gradient_clip)
        optimizer.step()
        # This waits for the device, once per step.
        row = torch.stack([loss.float() for loss in sums.values()]).cpu()
        add_over_processes(row)
        found = dict(zip(sums, row.tolist(), strict=True))
        if not row.isfinite().all():
            raise ValueError(
                f"{section}: the losses of step {step + 1} are {found}; lower"
                " training.learning_rate, set training.gradient_clip, or check its initial weights"
            )
        curve.add(step + 1, **{f"loss_{name}": loss for name, loss in found.items()})
        if first:
            checkpoint.save(step + 1, model, optimizer, curve.state())
    batches.close()
    model.eval()


def make_schedule(params: TrainingParams) -> Schedule:
    """Return the learning-rate schedule of a training."""
    schedule = params.schedule
    if schedule.kind == "cosine":
        return cosine(params.learning_rate, params.steps, params.warmup_steps, LAST_RATE)
    return step_decay(
        params.learning_rate,
        schedule.at,
        schedule.factor,
        params.warmup_steps,
        schedule.warmup_from,
    )


def freeze(model: Detector, params: TrainingParams) -> None:
    """Put the model in training mode, but fix weights and batch statistics of `params.frozen`.

    Only the batch norms go to inference mode: in that mode, torchvision's proposal network gives no
    losses.
    """
    model.train()
    parts = model.parts()
    for name in params.frozen:
        parts[name].requires_grad_(False)
        for module in parts[name].modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _micro_batch_size(model: Detector, params: TrainingParams) -> int:
    """Return how many of this process's images pass through the network at once."""
    num_images, wanted = len(own_places(params.batch_size)), environment_number(MICRO_BATCH)
    split = num_processes() > 1 or (wanted is not None and wanted < num_images)
    in_parts, norms = model.supports("micro_batches"), trained_batch_norms(model)
    if split and not in_parts:
        raise ValueError(
            f"{model.architecture} trains in one process, without {MICRO_BATCH};"
            " set OVIS_PROCESSES to 1"
        )
    if wanted is None:
        return min(num_images, USUAL_MICRO_BATCH) if in_parts and not norms else num_images
    if wanted >= num_images:
        return num_images
    if norms:
        raise ValueError(
            f"{MICRO_BATCH}={wanted}: {norms[0]} and {len(norms) - 1} more normalise by the"
            f" statistics of all {num_images} images; unset it, freeze the parts that have them"
            f" (trunk, pyramid), or use more processes, which share their statistics"
        )
    return wanted


def _batches(
    model: Detector,
    supervision: Supervision,
    params: TrainingParams,
    steps: range,
    seed: int,
) -> Generator[Samples, None, None]:
    """Yield this process's part of each step's batch, prepared in the background."""
    device = next(model.parameters()).device
    places = own_places(params.batch_size)

    def prepare(step: int) -> Samples:
        batch = supervision.batch(step, params.batch_size, seed)
        samples = [
            training_sample(
                batch[place],
                numpy_generator(seed, "augmentation", step, place),
                params.flip,
                params.colour_jitter,
            )
            for place in places
        ]
        return [
            (send(image, device), {name: send(value, device) for name, value in target.items()})
            for image, target in samples
        ]

    yield from prefetch(prepare, steps, BATCHES_AHEAD)


def _micro_batches(
    model: Detector, samples: Samples, size: int, params: TrainingParams, seed: int
) -> Iterator[tuple[list[torch.Tensor], Targets, BatchContext | None]]:
    """Yield images, targets and context of each micro-batch of at most `size` images.

    If there are several, a forward pass up to the proposals first counts what can be sampled from
    each, because the samples are those of the whole batch.
    """
    batch_size = params.batch_size
    starts = range(0, len(samples), size)
    split = [samples[start : start + size] for start in starts]
    pairs = [([image for image, _ in part], [target for _, target in part]) for part in split]
    if len(pairs) == 1:
        images, targets = pairs[0]
        yield images, targets, PartContext(seed, batch_size) if num_processes() > 1 else None
        return
    first = own_places(batch_size).start
    contexts = [MicroBatchContext(seed, batch_size, first + start) for start in starts]
    micro_batches = list(zip(pairs, contexts, strict=True))
    sizes_hw = [model.padded_hw(images, context) for (images, _), context in micro_batches]
    heights, widths = zip(*sizes_hw, strict=True)
    padded_hw = PartContext(seed, batch_size).common_hw((max(heights), max(widths)))
    for (images, targets), context in micro_batches:
        context.padded_hw = padded_hw
        with autocast(images[0].device, params.precision == "bf16"):
            model.count_samples(images, targets, context)
    prepare_contexts(contexts, seed, batch_size)
    for (images, targets), context in micro_batches:
        yield images, targets, context
