"""A batch that is trained in shares: by several processes, or some pictures at a time by one.

The sum of the shares' losses and gradients is that of the whole batch, up to rounding, for
- the samples of anchors and regions are those that one process would draw for the whole batch,
- each loss is a mean over the samples of all shares,
- all pictures are padded to one size,
- batch statistics are those of all processes.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from stages.common.processes import add_over_processes, num_processes, own_places

Counts = list[tuple[int, int]]  # positives and negatives that can be drawn, per picture
Orders = list[tuple[torch.Tensor, torch.Tensor]]  # a random order of either, per picture


class Draws:
    """Random orders for the samplers of a step, where one process has the whole batch."""

    def common_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Return the size that all pictures are padded to, given that of this share's."""
        return image_hw

    def orders(self, counts: Counts) -> tuple[Orders, Counts]:
        """Return the orders for this share's pictures, and the counts of the whole batch."""
        return _random_orders(counts), counts


class ProcessDraws(Draws):
    """Draws for this process's part of a batch of `batch_size` pictures.

    Every process makes the draws for all pictures, and uses those for its own.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size

    def common_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Return the largest height and width of all processes."""
        largest = torch.tensor(image_hw)
        if num_processes() > 1:
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return tuple(largest.tolist())

    def orders(self, counts: Counts) -> tuple[Orders, Counts]:
        """Return as the parent does."""
        places = own_places(self._batch_size)
        table = torch.zeros(self._batch_size, 2, dtype=torch.int64)
        table[places.start : places.stop] = torch.tensor(counts)
        add_over_processes(table)
        every = [(positives, negatives) for positives, negatives in table.tolist()]
        return _random_orders(every)[places.start : places.stop], every


class CountingDraws(Draws):
    """Draws nothing, but takes down what could be drawn."""

    def __init__(self, padded_hw: tuple[int, int]) -> None:
        self._padded_hw, self.counts = padded_hw, []

    def common_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Return the size given."""
        return self._padded_hw

    def orders(self, counts: Counts) -> tuple[Orders, Counts]:
        """Return empty orders."""
        self.counts.append(counts)
        return _random_orders([(0, 0)] * len(counts)), counts


class PreparedDraws(Draws):
    """Gives one micro-batch the orders that were drawn before, those of the anchors first."""

    def __init__(self, padded_hw: tuple[int, int], turns: Iterable[tuple[Orders, Counts]]) -> None:
        self._padded_hw, self._turns = padded_hw, iter(turns)

    def common_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Return the size given."""
        return self._padded_hw

    def orders(self, counts: Counts) -> tuple[Orders, Counts]:
        """Return the next orders."""
        return next(self._turns)


def prepare_draws(
    counted: CountingDraws, sizes: Sequence[int], padded_hw: tuple[int, int], batch_size: int
) -> Iterator[PreparedDraws]:
    """Yield the draws of this process's micro-batches.

    Args:
        counted: has seen the anchors and the regions of each micro-batch in turn.
        sizes: pictures per micro-batch.
        padded_hw: of all processes' pictures.
        batch_size: of all processes.
    """
    draws = ProcessDraws(batch_size)
    kinds = [
        draws.orders([count for counts in counted.counts[kind::2] for count in counts])
        for kind in (0, 1)
    ]
    first = 0
    for size in sizes:
        turns = [(orders[first : first + size], every) for orders, every in kinds]
        yield PreparedDraws(padded_hw, turns)
        first += size


def _random_orders(counts: Counts) -> Orders:
    # On the processor, so that a GPU samples the same.
    return [
        (torch.randperm(positives, device="cpu"), torch.randperm(negatives, device="cpu"))
        for positives, negatives in counts
    ]


class SharedSampler(BalancedPositiveNegativeSampler):
    """torchvision's sampler of anchors or regions, for a share of a batch.

    Attributes:
        draws: of the step.
        own: how many positives and negatives the last call has chosen here.
        all: and in the whole batch.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float) -> None:
        super().__init__(batch_size_per_image, positive_fraction)
        self.draws = Draws()
        self.own = self.all = (0, 0)

    @classmethod
    def like(cls, sampler: BalancedPositiveNegativeSampler) -> "SharedSampler":
        """Return one that chooses as many."""
        return cls(sampler.batch_size_per_image, sampler.positive_fraction)

    def __call__(
        self, matched_idxs: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return masks uint8, per picture, of the chosen positives (>= 1) and negatives (0)."""
        found = [
            (torch.where(labels >= 1)[0], torch.where(labels == 0)[0]) for labels in matched_idxs
        ]
        orders, every = self.draws.orders([(len(p), len(n)) for p, n in found])
        self.all = self._total(every)
        chosen = [
            tuple(
                _mask(labels, where[order[:limit].to(where.device)])
                for where, order, limit in zip(
                    places, order_pair, self._limits(*map(len, order_pair)), strict=True
                )
            )
            for labels, places, order_pair in zip(matched_idxs, found, orders, strict=True)
        ]
        self.own = self._total([(len(p), len(n)) for p, n in orders])
        return [p for p, _ in chosen], [n for _, n in chosen]

    def part(self, positive_weight: float = 1.0, negative_weight: float = 1.0) -> float:
        """Return this share's part of the weight of all samples, 1 where nobody has any."""
        own, whole = (
            positive_weight * positives + negative_weight * negatives
            for positives, negatives in (self.own, self.all)
        )
        return own / whole if whole else 1.0

    def _limits(self, positives: int, negatives: int) -> tuple[int, int]:
        """Return how many are chosen of so many positives and negatives of a picture."""
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


class SharedBatchNorm2d(nn.BatchNorm2d):
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
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def trained_batch_norms(model: nn.Module) -> list[str]:
    """Return the names of the modules that normalise by the batch's statistics."""
    norms = nn.modules.batchnorm._BatchNorm
    return [name for name, m in model.named_modules() if isinstance(m, norms) and m.training]


def share_batch_norms(model: nn.Module) -> None:
    """Let those modules take the statistics of all processes."""
    if num_processes() == 1:
        return
    for name in trained_batch_norms(model):
        # The class alone, so that weights, names and what the optimiser holds stay as they are.
        model.get_submodule(name).__class__ = SharedBatchNorm2d


def add_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Put the sum over all processes into the gradients, by one message."""
    if num_processes() == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([p.grad.flatten() for p in trained])
    dist.all_reduce(flat)
    for parameter, total in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
        parameter.grad.copy_(total.view_as(parameter))
