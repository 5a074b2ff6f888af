"""Training of the class part (W^cls, W^det) with image labels.

Shape legend: R proposals of one image, C labelled classes (the base classes, unless
`--label-splits` says otherwise).
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch.nn import functional

from stages.common.runtime.curves import Curve
from stages.common.runtime.devices import send
from stages.common.runtime.progress import track
from stages.common.runtime.seeding import numpy_generator
from stages.models.proposals.base import class_scores
from stages.models.proposals.language import LanguageWspn
from stages.models.solver import cosine, make_optimizer, update
from stages.wspn.examples import ImageExample, require_labels
from stages.wspn.params import ClassifyParams

LARGEST_GRADIENT = 5.0  # norm
MOST = 1 - 1e-6  # rounding can take the sum p_c above 1


def image_scores(scores: Float[torch.Tensor, "R C"]) -> Float[torch.Tensor, " C"]:
    """Return the image's score per class, p in [0, 1), from W.

    Small sums are not clamped: that would end the gradient of a class beside a saturated one, and
    the binary cross-entropy bounds its own logarithms.

    Source: Mask-free OVIS, p_c = Σ_i w_ic.
    """
    return scores.sum(0).clamp(max=MOST)


def image_label_loss(
    scores: Float[torch.Tensor, "R C"], labels: Float[torch.Tensor, " C"]
) -> Float[torch.Tensor, ""]:
    """Return the binary cross-entropy of W with labels in {0, 1}, summed over classes.

    Source: Mask-free OVIS eq. 5, first term.
    """
    return functional.binary_cross_entropy(image_scores(scores), labels, reduction="sum")


def train_class_part(
    model: LanguageWspn,
    examples: Sequence[ImageExample],
    params: ClassifyParams,
    seed: int,
    curve: Curve,
) -> None:
    """Train the class part in place with AdamW; the loss is the mean over the images of a batch.

    Raises:
        ValueError: no image has a label.
    """
    require_labels(example.labels for example in examples)
    part = model.class_part
    part.fit(torch.cat([example.appearance for example in examples[:200]]).float())
    per_epoch = -(-len(examples) // params.batch_size)
    optimizer = make_optimizer(part, params.weight_decay, decay_vectors=True)
    rate = cosine(params.learning_rate, params.epochs * per_epoch)
    part.train()
    for step in track(range(params.epochs * per_epoch), "wspn classify"):
        epoch, turn = divmod(step, per_epoch)
        order = numpy_generator(seed, "wspn classify", epoch).permutation(len(examples))
        batch = [examples[row] for row in np.array_split(order, per_epoch)[turn]]
        seen = [
            _draw_features(example, params.proposals_per_visit, seed, epoch) for example in batch
        ]
        logits = model.class_logits(send(torch.cat(seen), model.device).float())
        lengths = [len(features) for features in seen]
        losses = [
            image_label_loss(class_scores(classes, detection), send(example.labels, model.device))
            for example, classes, detection in zip(
                batch, *(x.split(lengths) for x in logits), strict=True
            )
        ]
        loss = torch.stack(losses).mean()
        update(part, optimizer, loss, rate(step), LARGEST_GRADIENT)
        curve.add(step + 1, loss_image_labels=loss.detach())
    part.eval()


def _draw_features(example: ImageExample, limit: int, seed: int, epoch: int) -> torch.Tensor:
    """Return the features of at most `limit` random proposals, drawn anew each epoch.

    With all proposals the score concentrates on one small discriminative part of an object. If that
    part is often missing, boxes of the whole object score as well (and training is faster).
    """
    count = len(example.appearance)
    if count <= limit:
        return example.appearance
    generator = numpy_generator(seed, "wspn visit", epoch, example.image_id)
    return example.appearance[torch.from_numpy(generator.permutation(count)[:limit])]
