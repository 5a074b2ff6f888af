"""Maps detections from the resized image to the frame of the original.

A mask head's masks are small squares in the frame of their box.

Shape legend: N masks of M×M cells, H W pixels.
"""

from math import ceil, floor

import torch
from jaxtyping import Bool, Float
from torchvision.models.detection.transform import resize_boxes

from stages.models.detection.detector import Prediction

# A matrix product of fewer rows or columns rounds differently from one of the whole image.
SMALLEST_WINDOW = 32


def in_image(
    detections: dict[str, torch.Tensor], seen_hw: tuple[int, int], image_hw: tuple[int, int]
) -> Prediction:
    """Map boxes and masks from the resized image to the frame of the original.

    Args:
        detections: "boxes" (N, 4) xyxy, "labels" (N,), "scores" (N,) and "masks" float (N, M, M),
            probabilities.
        seen_hw: the size of the resized image.
        image_hw: the size of the original.
    """
    boxes = resize_boxes(detections["boxes"], seen_hw, image_hw)
    return Prediction(
        boxes.cpu().numpy(),
        detections["labels"].cpu().numpy(),
        detections["scores"].cpu().numpy(),
        paste_masks(detections["masks"], boxes, image_hw).numpy(),
    )


def paste_masks(
    probabilities: Float[torch.Tensor, "N M M"],
    boxes_xyxy: Float[torch.Tensor, "N 4"],
    image_hw: tuple[int, int],
) -> Bool[torch.Tensor, "N {image_hw[0]} {image_hw[1]}"]:
    """Return masks of the image: true where the probability is above 0.5, false outside the box.

    Bilinear interpolation is separable, so two matrix products take the place of a resize. They are
    computed in the window of the box alone, with the bits that they would have in the whole image.
    Inside the box, the border cells extend to its edge: most masks fill their box, and fading to
    zero there would shave a margin off each.

    Args:
        probabilities: in [0, 1], rows then columns of the box.
        boxes_xyxy: in pixels of the image.
        image_hw: the image's size.
    """
    height, width = image_hw
    probabilities, corners = probabilities.float(), boxes_xyxy.double().cpu().tolist()
    down = _interpolation(boxes_xyxy[:, 1::2], height, probabilities.shape[1])
    across = _interpolation(boxes_xyxy[:, ::2], width, probabilities.shape[2])
    pasted = torch.zeros((len(corners), height, width), dtype=torch.bool, device="cpu")
    for k, (x0, y0, x1, y1) in enumerate(corners):
        rows, columns = _window(y0, y1, height), _window(x0, x1, width)
        mask = down[k : k + 1, rows] @ probabilities[k : k + 1] @ across[k : k + 1, columns].mT
        pasted[k, rows, columns] = (mask[0] > 0.5).cpu()
    return pasted


def _window(low: float, high: float, pixels: int) -> slice:
    """Return the pixels of an axis that [low, high] reaches, at least SMALLEST_WINDOW if any."""
    end = min(max(ceil(high), floor(low) + SMALLEST_WINDOW), pixels)
    return slice(max(0, min(floor(low), end - SMALLEST_WINDOW)), max(0, end))


def _interpolation(
    edges: Float[torch.Tensor, "N 2"], pixels: int, cells: int
) -> Float[torch.Tensor, "N {pixels} {cells}"]:
    """Return the cells' weights at pixel centres, 0 outside the box's edges."""
    low, high = edges[:, :1], edges[:, 1:]
    centre = torch.arange(pixels, device=edges.device) + 0.5
    position = (centre - low) / (high - low).clamp(min=1e-6)
    inside = (position >= 0) & (position <= 1)
    cell = (position * cells - 0.5).clamp(0, cells - 1)
    distance = (cell[..., None] - torch.arange(cells, device=edges.device)).abs()
    return (1 - distance).clamp(min=0) * inside[..., None]
