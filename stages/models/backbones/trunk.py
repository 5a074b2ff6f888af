"""A small convolutional trunk: the small VLM's patch embedding and the small detector's backbone.

Shape legend: N images, C channels, H W pixels. Strides 4 and 8 are in pixels of the input.
Frame: cell (k, l) of stride s is centred on row (k + 1/2)·s and column (l + 1/2)·s of the input.
"""

import torch
from jaxtyping import Float
from torch import nn
from torch.nn import functional


def conv_norm_relu(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return a convolution, batch norm and ReLU; the kernel is 3×3, or 4×4 with stride 2.

    With the even kernel, a cell of the smaller map is centred on the 2×2 cells that it stands for.
    A 3×3 kernel would centre it half a cell up and left of them; three such layers add up to 3.5
    pixels.
    """
    kernel = 4 if stride == 2 else 3
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    """Two 3×3 convolutions with a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv_norm_relu(channels, channels)
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Float[torch.Tensor, "N C H W"]) -> Float[torch.Tensor, "N C H W"]:
        """Keep the shape."""
        return functional.relu(x + self.second(self.first(x)))


class Trunk(nn.Module):
    """Three stride-2 convolutions, then residual blocks at stride 8."""

    def __init__(self, stem_width: int, width: int, residual_blocks: int) -> None:
        """Set `2 * stem_width` channels at stride 4 and `width` at stride 8."""
        super().__init__()
        self.stride4_channels, self.stride8_channels = 2 * stem_width, width
        self.stem = nn.Sequential(
            conv_norm_relu(3, stem_width, 2), conv_norm_relu(stem_width, 2 * stem_width, 2)
        )
        self.body = nn.Sequential(
            conv_norm_relu(2 * stem_width, width, 2),
            *[Residual(width) for _ in range(residual_blocks)],
        )

    def forward(
        self, images: Float[torch.Tensor, "N 3 H W"]
    ) -> tuple[
        Float[torch.Tensor, "N {self.stride4_channels} H//4 W//4"],
        Float[torch.Tensor, "N {self.stride8_channels} H//8 W//8"],
    ]:
        """Map normalised pixels to features at stride 4 and at stride 8."""
        stride4 = self.stem(images)
        return stride4, self.body(stride4)
