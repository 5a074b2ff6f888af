"""A batch that is trained in parts: by several processes, or in micro-batches by one.

The losses and gradients of the parts add up to those of the whole batch, up to rounding, because

- anchors and regions are sampled as one process would sample them for the whole batch,
- each loss is a mean over the samples of all parts,
- all images are padded to one size,
- batch statistics are those of all processes.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from stages.common.runtime.processes import add_over_processes, num_processes, own_places

Counts = list[tuple[int, int]]  # positives and negatives to draw from, per image
Orders = list[tuple[torch.Tensor, torch.Tensor]]  # a random order of each, per image


class BatchContext:
    """What a network must know of a step's whole batch; here its images are the whole batch."""

    def resizing(self, count: int) -> AbstractContextManager[None]:
        """Enclose the block in which torchvision draws `count` image sizes, one number each."""
        return nullcontext()

    def common_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Return the size to which all images are padded, given that of these images."""
        return image_hw

    def orders(self, counts: Counts) -> tuple[Orders, Counts]:
        """Return the orders for these images, and the counts of the whole batch."""
        return _random_orders(counts), counts


class PartContext(BatchContext):
    """The context of a part of a batch: the images of a process, or some of them.

    Together, the parts draw what one process would draw for all: every process makes the draws of
    all images and uses those of its own.
    """

    def __init__(self, seed: int, batch_size: int, first: int | None = None) -> None:
        """Take the step's seed, and the place of the first image if not the process's first."""
        self._seed, self._batch_size = seed, batch_size
        self._first = own_places(batch_size).start if first is None else first

    @contextmanager
    def resizing(self, count: int) -> Iterator[None]:
        """Seed the step's draws and skip those of other images, before and after the block."""
        torch.manual_seed(self._seed)
        _skip(self._first)
        yield
        _skip(self._batch_size - self._first - count)

    def common_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Return the largest height and width over all processes."""
        largest = torch.tensor(image_hw, device="cpu")
        if num_processes() > 1:
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return tuple(largest.tolist())

    def orders(self, counts: Counts) -> tuple[Orders, Counts]:
        """Return what the parent returns, with the counts of all processes."""
        here = slice(self._first, self._first + len(counts))
        table = torch.zeros(self._batch_size, 2, dtype=torch.int64, device="cpu")
        table[here] = torch.tensor(counts, device="cpu")
        add_over_processes(table)
        batch_counts = [(positives, negatives) for positives, negatives in table.tolist()]
        return _random_orders(batch_counts)[here], batch_counts


class MicroBatchContext(PartContext):
    """The context of a micro-batch: it counts what can be drawn, then gives what was drawn.

    Attributes:
        counts: one entry for each call of `orders`: anchors, then regions, or whatever the network
            samples.
        prepared: the orders for each entry and the batch's counts, filled by `prepare_contexts`.
        padded_hw: the size to which all images of the batch are padded.
    """

    def __init__(self, seed: int, batch_size: int, first: int) -> None:
        super().__init__(seed, batch_size, first)
        self.counts: list[Counts] = []
        self.prepared: list[tuple[Orders, Counts]] = []
        self.padded_hw: tuple[int, int] | None = None

    def common_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Return `padded_hw`, which must be set."""
        assert self.padded_hw is not None
        return self.padded_hw

    def orders(self, counts: Counts) -> tuple[Orders, Counts]:
        """Return the next prepared orders; without any, record the counts and choose nothing."""
        if self.prepared:
            return self.prepared.pop(0)
        self.counts.append(counts)
        return _random_orders([(0, 0)] * len(counts)), counts


def prepare_contexts(parts: Sequence[MicroBatchContext], seed: int, batch_size: int) -> None:
    """Draw for this process's micro-batches, given in order, after all of them have counted."""
    process = PartContext(seed, batch_size)
    num_images = len(own_places(batch_size))
    with process.resizing(num_images):
        _skip(num_images)
    for of_parts in zip(*(part.counts for part in parts), strict=True):  # anchors, then regions
        orders, batch_counts = process.orders([count for counts in of_parts for count in counts])
        for part, counts in zip(parts, of_parts, strict=True):
            part.prepared.append((orders[: len(counts)], batch_counts))
            orders = orders[len(counts) :]


def _skip(numbers: int) -> None:
    for _ in range(numbers):
        torch.empty(1, device="cpu").uniform_()


def _random_orders(counts: Counts) -> Orders:
    # On the CPU, so that a GPU draws the same samples.
    return [
        (torch.randperm(positives, device="cpu"), torch.randperm(negatives, device="cpu"))
        for positives, negatives in counts
    ]


class PartSampler(BalancedPositiveNegativeSampler):
    """torchvision's sampler of anchors or regions, for a part of a batch.

    Attributes:
        context: of the images whose anchors or regions are sampled.
        num_chosen_here: how many positives and negatives the last call chose from these images.
        num_chosen: how many all parts together chose from the whole batch.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float) -> None:
        super().__init__(batch_size_per_image, positive_fraction)
        self.context = BatchContext()
        self.num_chosen_here = self.num_chosen = (0, 0)

    @classmethod
    def like(cls, sampler: BalancedPositiveNegativeSampler) -> "PartSampler":
        """Return a sampler that chooses as many."""
        return cls(sampler.batch_size_per_image, sampler.positive_fraction)

    def __call__(
        self, matched_idxs: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return uint8 masks, per image, of the chosen positives (>= 1) and negatives (0)."""
        found = [
            (torch.where(labels >= 1)[0], torch.where(labels == 0)[0]) for labels in matched_idxs
        ]
        orders, batch_counts = self.context.orders([(len(p), len(n)) for p, n in found])
        self.num_chosen = self._total(batch_counts)
        chosen = [
            tuple(
                _mask(labels, where[order[:limit].to(where.device)])
                for where, order, limit in zip(
                    places, order_pair, self._limits(*map(len, order_pair)), strict=True
                )
            )
            for labels, places, order_pair in zip(matched_idxs, found, orders, strict=True)
        ]
        self.num_chosen_here = self._total([(len(p), len(n)) for p, n in orders])
        return [p for p, _ in chosen], [n for _, n in chosen]

    def loss_fraction(self, positive_weight: float = 1.0, negative_weight: float = 1.0) -> float:
        """Return this part's fraction of a loss that is a mean over the samples of the batch.

        It is a fraction of the samples' weight; 1 if there are no samples at all.
        """
        weight_here, weight = (
            positive_weight * positives + negative_weight * negatives
            for positives, negatives in (self.num_chosen_here, self.num_chosen)
        )
        return weight_here / weight if weight else 1.0

    def _limits(self, positives: int, negatives: int) -> tuple[int, int]:
        """Return how many of an image's positives and negatives are chosen."""
        wanted = min(positives, int(self.batch_size_per_image * self.positive_fraction))
        return wanted, min(negatives, self.batch_size_per_image - wanted)

    def _total(self, counts: Counts) -> tuple[int, int]:
        limits = [self._limits(*count) for count in counts]
        return sum(p for p, _ in limits), sum(n for _, n in limits)


def _mask(like: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    mask = torch.zeros_like(like, dtype=torch.uint8)
    mask[chosen] = 1
    return mask


class _Sum(torch.autograd.Function):
    """The sum over processes, whose gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: object, values: torch.Tensor) -> torch.Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with the statistics of all processes; torch's own needs a GPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to the same shape and type."""
        if not self.training:
            return super().forward(x)
        values = x.float()
        sums = values.sum((0, 2, 3))
        total = _Sum.apply(torch.cat([sums, sums.new_tensor([x.numel() / x.shape[1]])]))
        count = total[-1].detach()
        mean = total[:-1] / count
        centred = values - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None and self.num_batches_tracked is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def trained_batch_norms(model: nn.Module) -> list[str]:
    """Return the names of the modules that normalise by batch statistics."""
    norms = nn.modules.batchnorm._BatchNorm
    return [name for name, m in model.named_modules() if isinstance(m, norms) and m.training]


def sync_batch_norms(model: nn.Module) -> None:
    """Let the modules that `trained_batch_norms` names use the statistics of all processes."""
    if num_processes() == 1:
        return
    for name in trained_batch_norms(model):
        # Only the class changes: weights, names and the optimizer's parameters stay the same.
        model.get_submodule(name).__class__ = SyncBatchNorm2d
