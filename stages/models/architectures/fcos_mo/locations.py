"""Locations of a feature pyramid, and the object that each of them learns.

Shape legend: L locations of all levels, n objects of an image. Coordinates are in pixels of the
resized image. Distances are from a location to the edges of a box: left, top, right, bottom.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch
from jaxtyping import Float, Int
from torchvision.ops import box_area

from stages.models.backbones.roi_align import first_centre, image_indices, pool_from_levels
from stages.models.detection.detector import IGNORED

BACKGROUND, LEFT_OUT = -1, -2  # of locations that learn no object


@dataclass(frozen=True)
class Grid:
    """The levels that have locations, from fine to coarse."""

    strides: Sequence[int]
    central: bool  # see `first_centre`
    limits: Sequence[float]  # largest distance of each level but the last, in pixels

    def locations(self, image_hw: tuple[int, int], device: torch.device) -> "Locations":
        """Return the locations of an image whose sides are multiples of the strides."""
        ranges = zip((0.0, *self.limits), (*self.limits, inf), strict=True)
        centres, facts = [], []
        for stride, (low, high) in zip(self.strides, ranges, strict=True):
            first = first_centre(stride, self.central)
            y, x = (
                torch.arange(side // stride, device=device) * stride + first for side in image_hw
            )
            centres.append(torch.cartesian_prod(y, x).flip(1))
            facts += [torch.tensor([stride, low, high], device=device).expand(len(centres[-1]), 3)]
        strides, lows, highs = torch.cat(facts).unbind(1)
        per_level = [len(level) for level in centres]
        return Locations(torch.cat(centres), strides, lows, highs, per_level)

    def level(self, boxes_xyxy: Float[torch.Tensor, "n 4"]) -> Int[torch.Tensor, " n"]:
        """Return the level on which a location at the centre of each box learns it."""
        reach = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).amax(1) / 2
        return torch.bucketize(reach, torch.tensor(self.limits, device=reach.device))

    def read_centres(
        self,
        levels: Sequence[Float[torch.Tensor, "N D _ _"]],
        boxes_xyxy: list[Float[torch.Tensor, "_ 4"]],
    ) -> Float[torch.Tensor, "R D"]:
        """Return the features at the centres of each image's boxes, on the level that learns each.

        The mask head's instance embedding is computed from them. Ours, because FCOS has no single
        centre cell per object, unlike CenterNet.
        """
        boxes, image = torch.cat(boxes_xyxy), image_indices(boxes_xyxy)
        points = ((boxes[:, :2] + boxes[:, 2:]) / 2).repeat(1, 2)
        grids = [(stride, first_centre(stride, self.central)) for stride in self.strides]
        with_locations = levels[-len(grids) :]
        return pool_from_levels(
            with_locations, grids, self.level(boxes), points, image, side=1
        ).flatten(1)


@dataclass(frozen=True)
class Locations:
    """All locations of an image, ordered by level, then by row."""

    centres: Float[torch.Tensor, "L 2"]  # x and y, in pixels
    strides: Float[torch.Tensor, " L"]
    low: Float[torch.Tensor, " L"]  # distances learned here are larger than this
    high: Float[torch.Tensor, " L"]  # and at most this
    per_level: list[int]

    def boxes(self, distances: Float[torch.Tensor, "*N L 4"]) -> Float[torch.Tensor, "*N L 4"]:
        """Return boxes xyxy from distances."""
        centres, (before, behind) = self.centres, distances.split(2, -1)
        return torch.cat([centres - before, centres + behind], -1)

    def assign(
        self, boxes_xyxy: Float[torch.Tensor, "n 4"], labels: Int[torch.Tensor, " n"], radius: float
    ) -> Int[torch.Tensor, " L"]:
        """Return which object each location learns: its index, BACKGROUND or LEFT_OUT.

        A location learns an object if it lies inside the object's box, at most `radius` strides
        from the centre of the box on each axis (centre sampling), and its largest distance fits the
        level. Of several such objects it learns the smallest. A location that learns no object, but
        lies in a box with label -1, is left out.
        Source: FCOS (journal version), sections 3.1 and 3.2.
        """
        if not len(boxes_xyxy):
            return torch.full((len(self.centres),), BACKGROUND, device=self.centres.device)
        distances = edge_distances(self.centres[:, None], boxes_xyxy)
        inside, reach = distances.amin(2) > 0, distances.amax(2)
        middle = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
        near = (self.centres[:, None] - middle).abs().amax(2) <= radius * self.strides[:, None]
        fits = (reach > self.low[:, None]) & (reach <= self.high[:, None])
        ignored = labels == IGNORED
        areas = torch.where(inside & near & fits & ~ignored, box_area(boxes_xyxy), inf)
        smallest, index = areas.min(1)
        nothing = torch.where((inside & ignored).any(1), LEFT_OUT, BACKGROUND)
        return torch.where(smallest < inf, index, nothing)


def edge_distances(
    centres: Float[torch.Tensor, "... 2"], boxes_xyxy: Float[torch.Tensor, "... 4"]
) -> Float[torch.Tensor, "... 4"]:
    """Return distances in pixels of points to the edges of boxes; Source: FCOS eq. 1."""
    return torch.cat([centres - boxes_xyxy[..., :2], boxes_xyxy[..., 2:] - centres], dim=-1)


def centerness(distances: Float[torch.Tensor, "*N 4"]) -> Float[torch.Tensor, "*N"]:
    """Return the centerness of locations, in [0, 1], from distances; Source: FCOS eq. 3."""
    pairs = distances.unflatten(-1, (2, 2))
    return (pairs.amin(-2) / pairs.amax(-2)).prod(-1).sqrt()
