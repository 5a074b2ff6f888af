"""Maps detections from the resized image to the frame of the original.

A mask head's masks are small squares in the frame of their box.

Shape legend: N masks of M×M cells, H W pixels.
"""

import torch
from jaxtyping import Bool, Float
from torchvision.models.detection.transform import resize_boxes

from stages.models.detection.detector import Prediction

# They bound memory: 64 float masks of 800×1333 pixels take 270 MB, as do 5 of 3000×4000.
PASTED_AT_ONCE = 64
PIXELS_AT_ONCE = 64 * 800 * 1333


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

    Bilinear interpolation is separable, so a whole batch takes two matrix products instead of a
    resize per mask. Inside the box, the border cells extend to its edge: most masks fill their box,
    and fading to zero there would shave a margin off each.

    Args:
        probabilities: in [0, 1], rows then columns of the box.
        boxes_xyxy: in pixels of the image.
        image_hw: the image's size.
    """
    height, width = image_hw
    pasted = torch.empty((len(boxes_xyxy), height, width), dtype=torch.bool, device="cpu")
    at_once = max(1, min(PASTED_AT_ONCE, PIXELS_AT_ONCE // (height * width)))
    for start in range(0, len(boxes_xyxy), at_once):
        part = slice(start, start + at_once)
        x0, y0, x1, y1 = boxes_xyxy[part].unbind(1)
        rows = _interpolation(y0, y1, height, probabilities.shape[1])
        columns = _interpolation(x0, x1, width, probabilities.shape[2])
        pasted[part] = (rows @ probabilities[part].float() @ columns.transpose(1, 2) > 0.5).cpu()
    return pasted


def _interpolation(low: torch.Tensor, high: torch.Tensor, pixels: int, cells: int) -> torch.Tensor:
    """Return the cells' weights (N, pixels, cells) at pixel centres, 0 outside [low, high]."""
    centre = torch.arange(pixels, device=low.device) + 0.5
    position = (centre - low[:, None]) / (high - low).clamp(min=1e-6)[:, None]
    inside = (position >= 0) & (position <= 1)
    cell = (position * cells - 0.5).clamp(0, cells - 1)
    distance = (cell[..., None] - torch.arange(cells, device=low.device)).abs()
    return (1 - distance).clamp(min=0) * inside[..., None]
