"""A deep hourglass that outlines the object in a box, in the frame of the box.

Source: Deep-MAC ("The surprising impact of mask-head architecture on novel class segmentation"),
section 3. Crops of a pixel embedding, coordinates and an instance embedding go through an
hourglass. It is trained on given boxes, never on predicted ones, which lets it outline classes
whose masks it never saw.

The ALP poster says only "deep Hourglass mask head". Ours:

- Group norm replaces batch norm, so that crops of several processes or micro-batches do not depend
  on each other.
- Maps are halved by kernels of an even side, where Deep-MAC has 3×3, so that a coarse cell is
  centred on those that it stands for.
- The instance embedding is read at the centre of the box, on the level that learns it, because FCOS
  has no single centre cell per object, unlike CenterNet.

Shape legend: N images, R regions, S cells per side of a crop, M of a mask (here S), D channels of a
level, E of an instance embedding.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Float32, UInt8
from torch import nn
from torch.nn import functional

from stages.models.architectures.fcos_mo.heads import conv_norm_relu
from stages.models.architectures.fcos_mo.locations import Grid
from stages.models.architectures.fcos_mo.params import GROUP, HOURGLASSES, MaskHeadParams
from stages.models.backbones.fpn import double
from stages.models.backbones.roi_align import first_centre, pool_regions
from stages.models.detection.mask_targets import mask_targets

CROPS_AT_ONCE = 128  # in inference: 0.5 GB of activations with Deep-MAC's 52 layers


class Residual(nn.Module):
    """Two 3×3 convolutions with a skip connection; to halve the map, the first is 4×4."""

    def __init__(self, inputs: int, outputs: int, halve: bool = False) -> None:
        super().__init__()
        kernel, stride = (4, 2) if halve else (3, 1)
        self.convolutions = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel, stride, 1, bias=False),
            nn.GroupNorm(outputs // GROUP, outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.GroupNorm(outputs // GROUP, outputs),
        )
        self.skip: nn.Module = nn.Identity()
        if halve or inputs != outputs:
            self.skip = nn.Sequential(
                nn.Conv2d(inputs, outputs, stride, stride, bias=False),
                nn.GroupNorm(outputs // GROUP, outputs),
            )

    def forward(self, x: Float[torch.Tensor, "R _ S S"]) -> Float[torch.Tensor, "R _ _ _"]:
        """Map `inputs` channels to `outputs`, and the side to itself or to half of it."""
        return functional.relu(self.skip(x) + self.convolutions(x))


def _residuals(widths: Sequence[int], halve: bool = False) -> nn.Sequential:
    pairs = enumerate(pairwise(widths))
    return nn.Sequential(*[Residual(*pair, halve and k == 0) for k, pair in pairs])


class Stage(nn.Module):
    """One resolution of an hourglass, with all coarser ones inside it."""

    def __init__(self, blocks: Sequence[int], widths: Sequence[int]) -> None:
        """Take blocks and channels of at least two resolutions, from fine to coarse."""
        super().__init__()
        (count, *inner), (width, coarse, *_) = blocks, widths
        self.beside = _residuals([width] * (count + 1))
        self.down = _residuals([width] + [coarse] * count, halve=True)
        self.inner = (
            Stage(inner, widths[1:]) if len(inner) > 1 else _residuals([coarse] * (inner[0] + 1))
        )
        self.up = _residuals([coarse] * count + [width])

    def forward(self, x: Float[torch.Tensor, "R C S S"]) -> Float[torch.Tensor, "R C S S"]:
        """Add what the coarser resolutions say."""
        within = self.up(self.inner(self.down(x)))
        for dim in (2, 3):
            within = double(within, dim, central=True)
        return self.beside(x) + within


def hourglass(depth: int, inputs: int, channels: int) -> nn.Sequential:
    """Return a network that maps (R, inputs, S, S) to one logit per cell, (R, 1, S, S).

    `depth` counts the convolutions on the longest path, as Deep-MAC does: all of side 3, or 4 to
    halve.
    """
    blocks, factors = HOURGLASSES[depth]
    widths = [channels * factor for factor in factors]
    return nn.Sequential(
        conv_norm_relu(inputs, channels),
        Residual(channels, widths[0]),
        Stage(blocks, widths),
        conv_norm_relu(widths[0], channels),
        nn.Conv2d(channels, 1, 1),
    )


class MaskHead(nn.Module):
    """Pixel and instance embeddings, and the hourglass that takes both."""

    def __init__(self, params: MaskHeadParams, width: int, grid: Grid, finest_stride: int) -> None:
        """Take levels of `width` channels; `grid` describes those with locations."""
        super().__init__()
        self.side, self.grid, self.finest_stride = params.crop_side, grid, finest_stride
        self.pixels = nn.Sequential(
            conv_norm_relu(width, width), nn.Conv2d(width, params.pixel_channels, 1)
        )
        self.instances = nn.Sequential(
            nn.Linear(width, width),
            nn.ReLU(inplace=True),
            nn.Linear(width, params.instance_channels),
        )
        inputs = params.pixel_channels + 2 + params.instance_channels
        self.hourglass = hourglass(params.depth, inputs, params.channels)

    def forward(
        self,
        levels: Sequence[Float[torch.Tensor, "N D _ _"]],
        boxes_xyxy: list[Float[torch.Tensor, "_ 4"]],
    ) -> Float32[torch.Tensor, "R {self.side} {self.side}"]:
        """Return mask logits in the frame of the boxes, for all images in order.

        Args:
            levels: all maps of the pyramid, from fine to coarse.
            boxes_xyxy: of each image, in pixels of the resized image.
        """
        boxes = torch.cat(boxes_xyxy)
        counts = torch.tensor([len(boxes) for boxes in boxes_xyxy], device=boxes.device)
        image = torch.repeat_interleave(torch.arange(len(counts), device=boxes.device), counts)
        crops = pool_regions(
            self.pixels(levels[0]),
            boxes,
            image,
            self.side,
            self.finest_stride,
            first_centre(self.finest_stride, self.grid.central),
        )
        embedded = self._instances(levels[-len(self.grid.strides) :], boxes, image)
        position = (torch.arange(self.side, device=boxes.device) + 0.5) / self.side * 2 - 1
        position = position.to(crops.dtype)
        shape = len(boxes), 1, self.side, self.side
        inputs = torch.cat(
            [
                crops,
                position[:, None].expand(shape),
                position.expand(shape),
                embedded.to(crops.dtype)[..., None, None].expand(-1, -1, *shape[2:]),
            ],
            dim=1,
        )
        parts = [inputs] if self.training else inputs.split(CROPS_AT_ONCE)
        return torch.cat([self.hourglass(part)[:, 0].float() for part in parts])

    def _instances(
        self, levels: Sequence[torch.Tensor], boxes_xyxy: torch.Tensor, image: torch.Tensor
    ) -> torch.Tensor:
        """Return embeddings (R, E) of the features at the centres of the boxes."""
        own_level = self.grid.level(boxes_xyxy)
        points = ((boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2).repeat(1, 2)
        rows, read = [], []
        for index, (level, stride) in enumerate(zip(levels, self.grid.strides, strict=True)):
            here = torch.where(own_level == index)[0]
            first = first_centre(stride, self.grid.central)
            rows.append(here)
            read.append(pool_regions(level, points[here], image[here], 1, stride, first))
        return self.instances(torch.cat(read)[torch.cat(rows).argsort()].flatten(1))


def mask_terms(
    logits: Float[torch.Tensor, "R M M"],
    boxes_xyxy: list[Float[torch.Tensor, "_ 4"]],
    masks: list[UInt8[torch.Tensor, "_ _ _"]],
) -> Float[torch.Tensor, " R"]:
    """Return each region's mean binary cross-entropy over its cells.

    Args:
        logits: of the regions of all images.
        boxes_xyxy: the regions of each image, in pixels of the resized image.
        masks: 0 or 1, one (H, W) per region.
    """
    objects = [torch.arange(len(stack), device=stack.device) for stack in masks]
    goals = mask_targets(boxes_xyxy, masks, objects, logits.shape[-1])
    terms = functional.binary_cross_entropy_with_logits(logits, goals, reduction="none")
    return terms.mean((1, 2))
