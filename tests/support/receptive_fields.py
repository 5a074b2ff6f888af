"""What the cells of a map look at."""

import torch
from torch import nn

CENTRE_TOLERANCE = 0.5  # pixels between it and where a cell is drawn


def receptive_centre(level: nn.Module, side: int, cell: int, draws: int) -> tuple[float, float]:
    """Return the centroid (row, column), in pixels, of what cell (cell, cell) of a map looks at.

    It is that of the squared gradients of random mixtures of the cell's channels by the pixels, of
    random images.
    """
    generator = torch.Generator().manual_seed(0)
    energy = torch.zeros(side, side)
    for _ in range(draws):
        image = torch.rand(1, 3, side, side, generator=generator, requires_grad=True)
        channels = level(image)[0, :, cell, cell]
        mixture = channels @ torch.randn(len(channels), generator=generator)
        (gradient,) = torch.autograd.grad(mixture, image)
        energy += gradient[0].square().sum(0)
    pixels = torch.arange(side) + 0.5
    down, across = energy.sum(1) / energy.sum(), energy.sum(0) / energy.sum()
    return float(down @ pixels), float(across @ pixels)


def make_even(network: nn.Module) -> nn.Module:
    """Give all convolutions equal weights, so that gradients show the geometry and nothing else."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.constant_(module.bias, 1.0)  # no ReLU closes
    return network.eval()
