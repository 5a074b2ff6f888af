"""RoIAlign as two matrix products per image.

Bilinear sampling on the grid of an upright box is separable: one matrix picks the rows, another the
columns. torchvision loops over cells, and its backward pass runs on one core. The products took a
third off a training step of the small detector, and they are deterministic on a GPU too.

Their memory grows with the width of the map and its channels, so maps of more than `LARGEST_MAP`
cells or `LARGEST_FEATURES` numbers go to torchvision. Its gradient is deterministic only on a CPU,
so a GPU that has to be deterministic keeps to the products. They pool at once as many regions as
`LARGEST_STRIPS` allows.

Shape legend: N images, R regions, C channels, H W cells of a map, S pooled cells per side.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import nn
from torchvision.ops import box_area, roi_align

SAMPLES = 2  # per pooled cell and axis
LARGEST_MAP = 64 * 64
LARGEST_FEATURES = 256 * LARGEST_MAP
LARGEST_STRIPS = 2**28  # numbers in an intermediate result: 1 GiB of float32


def first_centre(stride: float, central: bool) -> float:
    """Return the image row, in pixels, at the centre of a level's first cell; columns are alike.

    The next cells follow at `stride`. Even kernels, poolings and patches make a grid central: each
    cell is centred on the block of pixels that it stands for. Networks that halve a map by odd
    kernels with equal padding, such as ResNet, centre it on the first pixel of that block.
    """
    return stride / 2 if central else 0.5


class PyramidPooling(nn.Module):
    """Pools every region from the level that fits its size.

    Source: Feature Pyramid Networks, eq. 1, where regions of side 224 are pooled from stride 16.
    """

    def __init__(
        self, strides: Sequence[int], central: bool, side: int, canonical_side: float
    ) -> None:
        """Pool `side`×`side` cells; regions of side `canonical_side` are pooled from level 1.

        Levels count from 0, the finest. For `central` see `first_centre`.
        """
        super().__init__()
        self.grids = [(stride, first_centre(stride, central)) for stride in strides]
        self.side, self.canonical_side = side, canonical_side

    def forward(
        self,
        levels: dict[str, Float[torch.Tensor, "N C _ _"]],
        boxes_xyxy: list[Float[torch.Tensor, "_ 4"]],
        image_sizes: list[tuple[int, int]],
    ) -> Float[torch.Tensor, "R C {self.side} {self.side}"]:
        """Return the pooled maps of all regions, in order; the signature is torchvision's.

        Args:
            levels: maps from fine to coarse; those beyond the strides are not used.
            boxes_xyxy: the regions of each image, in pixels of the network's input.
            image_sizes: not used; the strides are known.
        """
        boxes, image = torch.cat(boxes_xyxy), image_indices(boxes_xyxy)
        used = list(levels.values())[: len(self.grids)]
        if len(used) == 1:
            return pool_regions(used[0], boxes, image, self.side, *self.grids[0])
        return pool_from_levels(used, self.grids, self._level(boxes), boxes, image, self.side)

    def _level(self, boxes_xyxy: torch.Tensor) -> torch.Tensor:
        octave = torch.log2(box_area(boxes_xyxy).clamp(min=0).sqrt() / self.canonical_side + 1e-6)
        return (octave.floor() + 1).clamp(0, len(self.grids) - 1).long()


def image_indices(boxes_xyxy: list[Float[torch.Tensor, "_ 4"]]) -> Int[torch.Tensor, " R"]:
    """Return the index of each box's image, in order."""
    device = boxes_xyxy[0].device
    counts = torch.tensor([len(boxes) for boxes in boxes_xyxy], device=device)
    return torch.repeat_interleave(torch.arange(len(counts), device=device), counts)


def pool_from_levels(
    levels: Sequence[Float[torch.Tensor, "N C _ _"]],
    grids: Sequence[tuple[float, float]],
    level: Int[torch.Tensor, " R"],
    boxes_xyxy: Float[torch.Tensor, "R 4"],
    image: Int[torch.Tensor, " R"],
    side: int,
) -> Float[torch.Tensor, "R C {side} {side}"]:
    """Return RoIAlign of each region on the level of its own.

    Args:
        levels: maps of all images.
        grids: stride and centre of each level, as in `pool_regions`.
        level: the index of each region's level.
        boxes_xyxy: in pixels of the network's input.
        image: the index of each region's image, in rising order.
        side: pooled cells per side.
    """
    rows, pooled = [], []
    for index, (features, grid) in enumerate(zip(levels, grids, strict=True)):
        here = torch.where(level == index)[0]
        rows.append(here)
        pooled.append(pool_regions(features, boxes_xyxy[here], image[here], side, *grid))
    return torch.cat(pooled)[torch.cat(rows).argsort()]


def pool_regions(
    features: Float[torch.Tensor, "N C H W"],
    boxes_xyxy: Float[torch.Tensor, "R 4"],
    image: Int[torch.Tensor, " R"],
    side: int,
    stride: float,
    centre: float,
) -> Float[torch.Tensor, "R C {side} {side}"]:
    """Return RoIAlign with 2×2 samples per cell.

    The result has the type of `features`, or float32 where torchvision computes it.

    Args:
        features: of all images.
        boxes_xyxy: in pixels of the network's input.
        image: the index of each region's image, in rising order.
        side: pooled cells per side.
        stride: pixels per cell.
        centre: row and column, in pixels, of the first cell's centre; with stride / 2 this is the
            usual aligned RoIAlign.
    """
    height, width = features.shape[2:]
    large = height * width > LARGEST_MAP or features[0].numel() > LARGEST_FEATURES
    ordered = features.device.type != "cpu" and torch.are_deterministic_algorithms_enabled()
    if large and not ordered:
        aligned = boxes_xyxy + (stride / 2 - centre)
        regions = torch.cat([image[:, None].to(aligned), aligned], dim=1)
        return roi_align(features.float(), regions, side, 1 / stride, SAMPLES, aligned=True)
    x0, y0, x1, y1 = ((boxes_xyxy - centre) / stride).unbind(1)
    rows = _samples(y0, y1, height, side).to(features.dtype)
    columns = _samples(x0, x1, width, side).to(features.dtype)
    counts = torch.bincount(image, minlength=len(features)).tolist()
    pooled = [
        _apply(feature_map, own_rows, own_columns)
        for feature_map, own_rows, own_columns in zip(
            features.permute(0, 2, 3, 1), rows.split(counts), columns.split(counts), strict=True
        )
    ]
    return torch.cat(pooled)


def _apply(feature_map: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return (R, C, S, S) from a map (H, W, C) and weights (R, S, H) and (R, S, W)."""
    at_once = max(1, LARGEST_STRIPS // (rows.shape[1] * feature_map[0].numel()))
    parts = zip(rows.split(at_once), columns.split(at_once), strict=True)
    applied = [_apply_at_once(feature_map, *part) for part in parts]
    return applied[0] if len(applied) == 1 else torch.cat(applied)


def _apply_at_once(
    feature_map: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    strips = (rows.flatten(0, 1) @ feature_map.flatten(1)).view(
        *rows.shape[:2], *feature_map.shape[1:]
    )
    return (columns[:, None] @ strips).permute(0, 3, 1, 2)


def _samples(low: torch.Tensor, high: torch.Tensor, cells: int, side: int) -> torch.Tensor:
    """Return weights (R, side, cells): a map's cells in the pooled cells, along one axis."""
    count = side * SAMPLES
    step = (torch.arange(count, device=low.device) + 0.5) / count
    position = low[:, None] + (high - low)[:, None] * step
    inside = (position >= -1) & (position <= cells)
    distance = position.clamp(0, cells - 1)[..., None] - torch.arange(cells, device=low.device)
    weights = (1 - distance.abs()).clamp(min=0) * inside[..., None]
    return weights.unflatten(1, (side, SAMPLES)).mean(2)
