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
- The convolution after the hourglass has `channels` outputs; Deep-MAC's code has twice as many.
- Each architecture says from which features of a box the instance embedding is computed.

Shape legend: N images, R regions, S cells per side of a crop, M of a mask (here S), D channels of a
level, E of an instance embedding.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Float32, Int, UInt8
from torch import nn
from torch.nn import functional

from stages.models.backbones.fpn import double
from stages.models.backbones.roi_align import first_centre, image_indices, pool_regions
from stages.models.detection.detector import Targets, object_weights
from stages.models.detection.mask_head_params import GROUP, HOURGLASSES, HourglassParams
from stages.models.detection.mask_targets import mask_targets

CROPS_AT_ONCE = 128  # in inference: 0.5 GB of activations with Deep-MAC's 52 layers

Levels = Sequence[Float[torch.Tensor, "N D _ _"]]  # of a pyramid, from fine to coarse
# From levels and each image's boxes xyxy, (n, 4), to one vector of D features per box, (R, D).
ReadInstances = Callable[[Levels, list[torch.Tensor]], torch.Tensor]


def conv_norm_relu(inputs: int, outputs: int) -> nn.Sequential:
    """Return a 3×3 convolution, group norm and ReLU.

    FCOS too has group norm in its towers. It treats each image by itself, so that micro-batches and
    several processes give the losses of one batch.
    """
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
        nn.GroupNorm(outputs // GROUP, outputs),
        nn.ReLU(inplace=True),
    )


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


class HourglassHead(nn.Module):
    """Pixel and instance embeddings, and the hourglass that takes both."""

    def __init__(
        self,
        params: HourglassParams,
        width: int,
        finest_stride: int,
        central: bool,
        read_instances: ReadInstances,
    ) -> None:
        """Take levels of `width` channels, the finest of which is cropped.

        For `central` see `first_centre`.
        """
        super().__init__()
        self.side, self.objects_per_image = params.crop_side, params.objects_per_image
        self.finest_stride, self.first = finest_stride, first_centre(finest_stride, central)
        self.read_instances = read_instances
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
        self, levels: Levels, boxes_xyxy: list[Float[torch.Tensor, "_ 4"]]
    ) -> Float32[torch.Tensor, "R {self.side} {self.side}"]:
        """Return mask logits in the frame of the boxes, for all images in order.

        Args:
            levels: all maps of the pyramid, from fine to coarse.
            boxes_xyxy: of each image, in pixels of the resized image.
        """
        crops = pool_regions(
            self.pixels(levels[0]),
            torch.cat(boxes_xyxy),
            image_indices(boxes_xyxy),
            self.side,
            self.finest_stride,
            self.first,
        )
        embedded = self.instances(self.read_instances(levels, boxes_xyxy))
        position = (torch.arange(self.side, device=crops.device) + 0.5) / self.side * 2 - 1
        position = position.to(crops.dtype)
        shape = len(crops), 1, self.side, self.side
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

    def loss(
        self,
        levels: Levels,
        targets: Targets,
        orders: Sequence[Int[torch.Tensor, " _"]],
        batch_counts: Sequence[int],
    ) -> Float32[torch.Tensor, ""]:
        """Return the mask loss of randomly drawn objects, at most `objects_per_image` per image.

        Objects with mask weight 0 are not drawn, but the mean is over as many objects as if they
        were.

        Args:
            levels: all maps of the pyramid, from fine to coarse.
            targets: of these images, resized.
            orders: a random order of each image's objects.
            batch_counts: the number of objects of each image of the whole batch.
        """
        num_objects = max(1, sum(min(count, self.objects_per_image) for count in batch_counts))
        mask_weights = [object_weights(target)[:, 2] for target in targets]
        chosen = [
            order.to(weights.device)[weights[order.to(weights.device)] > 0][
                : self.objects_per_image
            ]
            for order, weights in zip(orders, mask_weights, strict=True)
        ]
        if not any(map(len, chosen)):
            return levels[0].new_zeros(()).float()
        boxes = [target["boxes"][index] for target, index in zip(targets, chosen, strict=True)]
        masks = [target["masks"][index] for target, index in zip(targets, chosen, strict=True)]
        terms = mask_terms(self(levels, boxes), boxes, masks)
        pairs = zip(mask_weights, chosen, strict=True)
        return (terms * torch.cat([weights[index] for weights, index in pairs])).sum() / num_objects


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
