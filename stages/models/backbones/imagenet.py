"""ResNet-50 and VGG16 trunks of torchvision, and ImageNet weights from a local file.

Weights keep torchvision's names, so its files (`resnet50-*.pth`, `vgg16-*.pth`) load unchanged.
Trunks take RGB pixels in 0..1, normalised by `IMAGENET_MEAN` and `IMAGENET_STD`.

Shape legend: N images, R regions, C channels, H W pixels.
"""

import re
from collections import Counter
from pathlib import Path

import torch
from jaxtyping import Float
from torch import nn
from torch.nn import functional
from torchvision.models import vgg16
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops.misc import FrozenBatchNorm2d

from stages.models.backbones.weights import check_digest, load_exactly, read_checkpoint

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESNET50_BLOCKS = (3, 4, 6, 3)  # in layer1 to layer4

# Keys of torchvision's files that no trunk needs, and the names under which they are counted.
LEFT_OUT = {
    r"(fc|classifier\.6)\.(weight|bias)": "imagenet_classifier",
    r".+\.num_batches_tracked": "batch_counts",
}
_RESNET_STAGES = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
_VGG_STAGES = ((0, 5), (5, 10), (10, 17), (17, 24), (24, 31))  # positions in `features`
_VGG_POOL4, _VGG_POOL5, _VGG_CONV5 = 23, 30, (24, 26, 28)


class _ConstantBatchNorm(FrozenBatchNorm2d):
    """torchvision's frozen batch norm, but bfloat16 stays bfloat16 under autocast."""

    def forward(self, x: Float[torch.Tensor, "N C H W"]) -> Float[torch.Tensor, "N C H W"]:
        scale, shift = self.scale_and_shift()
        return x * scale.to(x.dtype)[:, None, None] + shift.to(x.dtype)[:, None, None]

    def scale_and_shift(self) -> tuple[Float[torch.Tensor, " C"], Float[torch.Tensor, " C"]]:
        """Return the factor of each channel, and the offset that is added afterwards."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


class _FoldedBottleneck(Bottleneck):
    """torchvision's block with its batch norms folded into the convolutions.

    The norms are constants. Scaling a convolution's weights and adding the shift as its bias gives
    the same result up to rounding, without another pass over the maps. In bfloat16 it is more
    exact: maps are rounded once, not three times.
    """

    def forward(self, x: Float[torch.Tensor, "N _ _ _"]) -> Float[torch.Tensor, "N _ _ _"]:
        out = self.relu(_normed(self.conv1, self.bn1, x))
        out = self.relu(_normed(self.conv2, self.bn2, out))
        out = _normed(self.conv3, self.bn3, out)
        out += x if self.downsample is None else _normed(self.downsample[0], self.downsample[1], x)
        return self.relu(out)


def _normed(conv: nn.Conv2d, norm: _ConstantBatchNorm, x: torch.Tensor) -> torch.Tensor:
    scale, shift = norm.scale_and_shift()
    weight = conv.weight * scale[:, None, None, None]
    return functional.conv2d(
        x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups
    )


def resnet50_trunk() -> nn.Sequential:
    """Return ResNet-50 without its classifier: (N, 3, H, W) to (N, 2048, H/32, W/32), rounded up.

    Its children are conv1, bn1, relu, maxpool and layer1 to layer4 (256, 512, 1024 and 2048
    channels at strides 4, 8, 16 and 32), so a slice is a shallower trunk with the same names. Batch
    norms are frozen: their statistics and scales are constants. Detectors usually do this because
    their batches are too small to estimate statistics.
    """
    whole = ResNet(_FoldedBottleneck, list(RESNET50_BLOCKS), norm_layer=_ConstantBatchNorm)
    trunk = nn.Sequential()
    for name, child in whole.named_children():
        if name not in ("avgpool", "fc"):
            trunk.add_module(name, child)
    return trunk


def vgg16_trunk(dropout: float) -> nn.ModuleDict:
    """Return the parts of VGG16: `features` and `classifier`.

    `features` maps (N, 3, H, W) to (N, 512, H/8, W/8), rounded down. `classifier` maps pooled
    features (R, 512 * 7 * 7) to (R, 4096) by two layers, each followed by `dropout`. The fourth
    pooling is left out and the convolutions after it are dilated by 2, so that their weights keep
    their meaning at twice the resolution. The caller's region pooling replaces the fifth pooling.
    Source: OICR and wetectron, whose VGG16 has stride 8 in this way.
    """
    whole = vgg16(weights=None, dropout=dropout)
    features = whole.features[:_VGG_POOL5]
    features[_VGG_POOL4] = nn.Identity()
    for place in _VGG_CONV5:
        features[place].dilation = features[place].padding = (2, 2)
    return nn.ModuleDict({"features": features, "classifier": whole.classifier[:6]})


def freeze_stages(trunk: nn.Module, count: int) -> None:
    """Freeze the first `count` of a trunk's five stages; 0 freezes none, 2 is usual."""
    if isinstance(trunk, nn.ModuleDict):
        features = trunk["features"]
        assert isinstance(features, nn.Sequential)
        parts = [features[slice(*places)] for places in _VGG_STAGES[:count]]
    else:
        parts = [getattr(trunk, name) for names in _RESNET_STAGES[:count] for name in names]
    for part in parts:
        part.requires_grad_(False)


def find_imagenet_weights(path: Path, sha256: str | None, key: str) -> None:
    """Check that a file of weights exists and has the expected digest, without loading it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another digest.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"params.yaml: {key}.weights: {path.absolute()} is not there; torchvision's page of"
            " models links its ImageNet weights. For random ones, set init to random (detector,"
            " rpn) or weights to null (wspn)"
        )
    check_digest(path, sha256, f"{key}.sha256")


def load_imagenet_weights(
    module: nn.Module, path: Path, sha256: str | None, key: str = "backbone"
) -> dict[str, int]:
    """Load a torchvision state dict into a whole trunk; return how many keys were left out.

    Args:
        module: a whole ResNet-50 or VGG16 trunk under torchvision's names.
        path: a torchvision checkpoint on this machine; nothing is downloaded.
        sha256: the file's digest; None skips the check.
        key: the mapping in params.yaml with keys `weights` and `sha256`, for error messages.

    Returns:
        The number of keys by the names in `LEFT_OUT`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another digest or is not a checkpoint, or weights are missing,
            unexpected or of another shape; the message lists them.
    """
    find_imagenet_weights(path, sha256, key)
    weights: dict[str, torch.Tensor] = {}
    left_out: Counter[str] = Counter()
    for name, tensor in read_checkpoint(path).items():
        reason = next((told for rule, told in LEFT_OUT.items() if re.fullmatch(rule, name)), None)
        if reason is None:
            weights[name] = tensor
        else:
            left_out[reason] += 1
    load_exactly(module, weights, path)
    return dict(left_out)
