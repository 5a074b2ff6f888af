"""From images of any size to a normalised batch, and their objects with them."""

import torch
from jaxtyping import Float
from torch.nn import functional
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from stages.models.detection.detector import Targets
from stages.models.detection.global_batch import BatchContext


class ImageTransform(GeneralizedRCNNTransform):
    """torchvision's transform, with masks that stay where they are.

    torchvision resizes masks by the pixel above and left of each place, which moves them by half a
    pixel to the bottom right. Here it is the nearest pixel by its centre, as for images and boxes.
    """

    def resize(
        self,
        image: Float[torch.Tensor, "3 _ _"],
        target: dict[str, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor] | None]:
        """Return an image and its target, resized together."""
        others = target and {key: value for key, value in target.items() if key != "masks"}
        image, others = super().resize(image, others)
        if target is None or "masks" not in target:
            return image, others
        masks = target["masks"]
        if len(masks) and masks.shape[1:] != image.shape[1:]:
            shape = image.shape[1:]
            masks = functional.interpolate(masks[:, None].float(), shape, mode="nearest-exact")
            masks = masks[:, 0].byte()
        return image, {**others, "masks": masks.reshape(len(masks), *image.shape[1:])}

    def batch(
        self, images: list[torch.Tensor], targets: Targets, context: BatchContext
    ) -> tuple[ImageList, Targets]:
        """Return images and targets, resized, and padded to the size of the whole batch."""
        with context.resizing(len(images)):
            batch, targets = self(images, targets)
        height, width = batch.tensors.shape[-2:]
        rows, columns = context.common_hw((height, width))
        batch.tensors = functional.pad(batch.tensors, (0, columns - width, 0, rows - height))
        return batch, targets
