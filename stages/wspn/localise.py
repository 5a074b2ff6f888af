"""Training of the object part: how well a box is localised, and where it should be.

Seeds stand for objects. A proposal that overlaps a seed learns its IoU with the seed and regresses
to it. A proposal that overlaps no seed is left out, because it may show an object of an unlabelled
class. A detector trained on base boxes would call it background, and so suppress novel classes
(ours; object localisation networks (OLN) report the same for supervised proposals). With `quality:
objectness` it is background, as in wetectron.

Shape legend: R proposals of one image, N proposals of all images, F features.
Frame: boxes in pixels of the network's input.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch.nn import functional

from stages.common.geometry.box_coder import encode_boxes
from stages.common.geometry.boxes import pairwise_iou
from stages.common.runtime.curves import Curve
from stages.common.runtime.devices import send
from stages.common.runtime.progress import track
from stages.common.runtime.seeding import numpy_generator
from stages.models.proposals.base import class_scores, consensus
from stages.models.proposals.language import LanguageWspn
from stages.models.solver import cosine, make_optimizer, update
from stages.wspn.classify import LARGEST_GRADIENT
from stages.wspn.examples import ImageExample
from stages.wspn.params import LocaliseParams, SeedParams
from stages.wspn.seeds import match_seeds, select_seeds

OBJECT_IOU = 0.5  # with a seed; used by `quality: objectness`


class ObjectTargets(NamedTuple):
    """The proposals of all images that have a target, in one table."""

    evidence: torch.Tensor  # float16 (N, F)
    quality: torch.Tensor  # float32 (N,), in [0, 1]
    offsets: torch.Tensor  # float32 (N, 4), see box_coder
    has_quality: torch.Tensor  # bool (N,), `quality` is a target
    has_offsets: torch.Tensor  # bool (N,), `offsets` are targets


@torch.no_grad()
def find_seeds(
    model: LanguageWspn, example: ImageExample, params: SeedParams
) -> Int64[np.ndarray, " S"]:
    """Return the seeds of all classes that the image is labelled with, rows ascending."""
    seen = send(example.appearance, model.device).float()
    scores = class_scores(*model.class_logits(seen)).cpu().numpy()
    overlaps = pairwise_iou(example.boxes_xyxy, example.boxes_xyxy)
    agreed = consensus(scores, overlaps, params.neighbour_iou, params.power)
    named = np.flatnonzero(example.labels.numpy())
    boxes = torch.from_numpy(example.boxes_xyxy)
    found = select_seeds(torch.from_numpy(agreed[:, named]), boxes, params)
    return np.array(sorted({row for rows in found for row in rows.tolist()}), np.int64)


def object_targets(
    examples: Sequence[ImageExample],
    seeds: Sequence[Int64[np.ndarray, " _"]],
    params: LocaliseParams,
) -> ObjectTargets:
    """Return the targets that the seeds (row numbers per image) give the proposals.

    Raises:
        ValueError: no proposal overlaps a seed enough.
    """
    pieces = [
        _image_targets(example, rows, params)
        for example, rows in zip(examples, seeds, strict=True)
        if len(rows)
    ]
    targets = ObjectTargets(*(torch.cat(column) for column in zip(*pieces, strict=True)))
    for key, mask in (("quality", targets.has_quality), ("regression", targets.has_offsets)):
        if not mask.any():
            raise ValueError(
                f"no proposal overlaps a seed enough to learn {key};"
                f" lower wspn.localise.{key}_min_iou"
            )
    return targets


def _image_targets(
    example: ImageExample, rows: np.ndarray, params: LocaliseParams
) -> ObjectTargets:
    nearest_overlap, nearest = match_seeds(example.boxes_xyxy, example.boxes_xyxy[rows])
    overlap = torch.from_numpy(nearest_overlap)
    quality, has_quality = quality_targets(overlap, params)
    has_offsets = overlap >= params.regression_min_iou
    used = has_quality | has_offsets
    offsets = encode_boxes(
        torch.from_numpy(example.boxes_xyxy)[used], torch.from_numpy(nearest)[used]
    )
    return ObjectTargets(
        example.evidence[used], quality[used], offsets, has_quality[used], has_offsets[used]
    )


def quality_targets(
    overlap: Float[torch.Tensor, " R"], params: LocaliseParams
) -> tuple[Float[torch.Tensor, " R"], Bool[torch.Tensor, " R"]]:
    """Return quality in [0, 1] and whether it is a target, from IoU with seeds."""
    if params.quality == "overlap":
        return overlap, overlap >= params.quality_min_iou
    # every proposal far from all seeds is background
    return (overlap >= OBJECT_IOU).float(), torch.ones_like(overlap, dtype=torch.bool)


def localisation_loss(
    quality_logits: Float[torch.Tensor, " N"],
    offsets: Float[torch.Tensor, "N 4"],
    targets: ObjectTargets,
    regression_weight: float,
) -> dict[str, Float[torch.Tensor, ""]]:
    """Return the losses {"quality", "regression"} of N proposals, each a sum divided by N.

    Args:
        quality_logits: predicted.
        offsets: predicted.
        targets: those of the same proposals.
        regression_weight: multiplies the regression loss.

    Source: Mask-free OVIS eq. 5, second term, (1/N) Σ_u smooth-L1(t̂(u_i), u_i). Here N counts the
    proposals of the batch that have a target, not all proposals of an image. The quality loss
    (binary cross-entropy) is ours.
    """
    has_quality, has_offsets = targets.has_quality, targets.has_offsets
    quality = functional.binary_cross_entropy_with_logits(
        quality_logits[has_quality], targets.quality[has_quality], reduction="sum"
    )
    regression = functional.smooth_l1_loss(
        offsets[has_offsets], targets.offsets[has_offsets], reduction="sum"
    )
    count = max(1, len(has_quality))
    return {"quality": quality / count, "regression": regression_weight * regression / count}


def train_object_part(
    model: LanguageWspn,
    targets: ObjectTargets,
    params: LocaliseParams,
    seed: int,
    curve: Curve,
    done: int,
) -> None:
    """Train the object part in place with AdamW; the curve already has `done` steps."""
    part, count = model.object_part, len(targets.quality)
    sample = numpy_generator(seed, "wspn evidence").permutation(count)[:20_000]
    part.fit(targets.evidence[torch.from_numpy(sample)].float())
    per_epoch = -(-count // params.batch_size)
    optimizer = make_optimizer(part, params.weight_decay, decay_vectors=True)
    rate = cosine(params.learning_rate, params.epochs * per_epoch)
    part.train()
    for step in track(range(params.epochs * per_epoch), "wspn localise"):
        if step % per_epoch == 0:
            generator = numpy_generator(seed, "wspn localise", step // per_epoch)
            batches = np.array_split(generator.permutation(count), per_epoch)
        rows = torch.from_numpy(batches[step % per_epoch])
        batch = ObjectTargets(*(send(column[rows], model.device) for column in targets))
        quality, offsets = model.objects(batch.evidence.float())
        losses = localisation_loss(quality[:, 0], offsets, batch, params.regression_weight)
        loss = losses["quality"] + losses["regression"]
        update(part, optimizer, loss, rate(step), LARGEST_GRADIENT)
        curve.add(
            done + step + 1, **{f"loss_{name}": loss.detach() for name, loss in losses.items()}
        )
    part.eval()
