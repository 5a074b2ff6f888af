"""The pseudo-mask as the official code makes it: a wide network per object at full resolution.

A fresh three-layer network of 128 channels is trained on the object's crop alone, at most 400 steps
of SGD, until its predictions have no more labels than the seeds. Another algorithm than that of
`stages.pseudo_masks` (fewer channels, a small square crop, many objects at once), so speed and
quality are compared and not pixels.

Shape legend: H W pixels of the crop.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

CHANNELS = 128  # also the number of labels
BACKGROUND, OBJECT = 0, 8
INSET = 5  # pixels between the crop's border and the background seeds
UNSEEDED = -100


class SegmentationNetwork(nn.Module):
    """Two 3×3 convolutions and one of 1×1, each with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.first_norm = nn.BatchNorm2d(CHANNELS)
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.second_norm = nn.BatchNorm2d(CHANNELS)
        self.third = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.third_norm = nn.BatchNorm2d(CHANNELS)

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """Map pixels (N, 3, H, W) to label logits (N, 128, H, W)."""
        x = self.first_norm(functional.relu(self.first(crops)))
        x = self.second_norm(functional.relu(self.second(x)))
        return self.third_norm(self.third(x))


def seed_labels(active: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return the label of each seeded pixel, int64 (H, W), UNSEEDED elsewhere.

    Background is a rectangle one pixel thick inside the border; the object `count` random active
    pixels and a small disc at the centre, or a larger disc if no pixel is active.

    Args:
        active: bool (H, W), where the activation is above its Otsu threshold.
        count: Z.
        generator: for the draw.
    """
    height, width = active.shape
    inset = min(INSET, (min(height, width) - 1) // 2)
    labels = np.full(active.shape, UNSEEDED, np.int64)
    labels[inset, inset : width - inset] = BACKGROUND
    labels[height - 1 - inset, inset : width - inset] = BACKGROUND
    labels[inset : height - inset, inset] = BACKGROUND
    labels[inset : height - inset, width - 1 - inset] = BACKGROUND
    candidates = np.flatnonzero(active)
    rows, columns = np.ogrid[:height, :width]
    distance = np.hypot(rows - height // 2, columns - width // 2)
    labels[distance <= (1 if candidates.size else INSET)] = OBJECT
    if candidates.size:
        labels.flat[generator.choice(candidates, count)] = OBJECT
    return labels


def segment_crop(
    crop: torch.Tensor,
    labels: np.ndarray,
    steps: int = 400,
    learning_rate: float = 0.25,
    stop_early: bool = True,
) -> tuple[np.ndarray, int]:
    """Train a network on one crop; return (mask bool (H, W), steps that it took).

    Args:
        crop: normalised pixels float32 (3, H, W).
        labels: int64 (H, W) from `seed_labels`.
        steps: at most.
        learning_rate: of SGD with momentum 0.9.
        stop_early: when no more labels are predicted than seeded.
    """
    network = SegmentationNetwork()
    optimizer = torch.optim.SGD(network.parameters(), learning_rate, momentum=0.9)
    seeds = torch.from_numpy(labels)[None]
    num_labels = len(np.unique(labels[labels != UNSEEDED]))
    taken = 0
    while taken < steps:
        logits = network(crop[None])
        predicted = logits.argmax(1)
        unseeded = torch.where(seeds == UNSEEDED, predicted, UNSEEDED)
        loss = functional.cross_entropy(logits, seeds, ignore_index=UNSEEDED)
        if (unseeded != UNSEEDED).any():
            loss = loss + functional.cross_entropy(logits, unseeded, ignore_index=UNSEEDED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        taken += 1
        if stop_early and len(predicted.unique()) <= num_labels:
            break
    with torch.no_grad():
        predicted = network(crop[None]).argmax(1)
    return (predicted[0] == OBJECT).numpy(), taken
