"""Settings of the mask heads, which architectures share.

What each key means and its usual value stand beside it in params.yaml and experiments/fcos-mo.yaml.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.common.runtime.params import Section

# Depth → residual blocks of each resolution, from fine to coarse, and their widths in units of
# `channels`. Source: Deep-MAC, appendix on the mask heads, and its official code.
HOURGLASSES = {
    10: ((1, 1), (2, 2)),
    20: ((1, 2, 2), (2, 2, 3)),
    32: ((2, 2, 2, 2), (2, 2, 3, 3)),
    52: ((2, 2, 2, 2, 2, 4), (2, 2, 3, 3, 3, 4)),
}
GROUP = 8  # channels that are normalised together; 32 groups for FCOS's 256
Width = Annotated[int, Field(ge=GROUP, multiple_of=GROUP)]


class ConvolutionsParams(Section):
    """Class-agnostic mask head of a few convolutions."""

    kind: Literal["convolutions"]
    pooler_resolution: int = Field(ge=1)
    channels: int = Field(ge=4)
    layers: int = Field(ge=0)


class HourglassParams(Section):
    """Deep class-agnostic mask head."""

    depth: Literal[10, 20, 32, 52]
    channels: Width
    crop_side: int = Field(ge=2)
    pixel_channels: int = Field(ge=1)
    instance_channels: int = Field(ge=1)
    objects_per_image: int = Field(ge=1)

    @model_validator(mode="after")
    def _crops_can_be_halved(self) -> "HourglassParams":
        multiple = 2 ** (len(HOURGLASSES[self.depth][0]) - 1)
        if self.crop_side % multiple:
            raise ValueError(
                f"crop_side: expected a multiple of {multiple}, so that depth {self.depth} can"
                f" halve it, found {self.crop_side}"
            )
        return self


class HourglassKindParams(HourglassParams):
    """Deep class-agnostic mask head, where there are others to choose from."""

    kind: Literal["hourglass"]


MaskHeadParams = Annotated[ConvolutionsParams | HourglassKindParams, Field(discriminator="kind")]


def check_width(width: int) -> None:
    """Check that an hourglass can normalise levels of so many channels in groups.

    Raises:
        ValueError: it cannot.
    """
    if width % GROUP:
        raise ValueError(f"backbone.pyramid_width: expected a multiple of {GROUP}, found {width}")
