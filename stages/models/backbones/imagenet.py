"""ResNet-50 and VGG16 trunks of torchvision, and ImageNet weights from a local file.

The names of their weights are torchvision's, so its own files (`resnet50-*.pth`, `vgg16-*.pth`)
load as they are. Shape legend: N images, H W pixels; a trunk is given pixels in 0..1 that
`IMAGENET_MEAN` and `IMAGENET_STD` have normalised, RGB.
"""

import re
from collections import Counter
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torchvision.models import vgg16
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops.misc import FrozenBatchNorm2d

from stages.models.backbones.weights import check_digest, load_exactly, read_checkpoint

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESNET50_BLOCKS = (3, 4, 6, 3)  # of layer1-4
NUM_STAGES = 5  # of both: stem and layer1-4 of ResNet-50, conv1-conv5 of VGG16

# Keys of torchvision's files that no trunk needs, and the name they are counted by.
LEFT_OUT = {
    r"(fc|classifier\.6)\.(weight|bias)": "imagenet_classifier",
    r".+\.num_batches_tracked": "batch_counts",
}
_RESNET_STAGES = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
_VGG_STAGES = ((0, 5), (5, 10), (10, 17), (17, 24), (24, 31))  # positions in `features`
_VGG_POOL4, _VGG_POOL5, _VGG_CONV5 = 23, 30, (24, 26, 28)


class _ConstantBatchNorm(FrozenBatchNorm2d):
    """torchvision's, but in the type of its input: bfloat16 stays that under autocast."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale, shift = self.scale_and_shift()
        return x * scale.to(x.dtype)[:, None, None] + shift.to(x.dtype)[:, None, None]

    def scale_and_shift(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what each channel (C,) is multiplied by, and what is added then."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


class _FoldedBottleneck(Bottleneck):
    """torchvision's block with constant batch norms, which take no pass over the maps.

    A convolution by weights times the scale, with the shift for bias, is what the norm would make
    of the convolution, but for rounding. In bfloat16 it is nearer: maps are rounded once, not
    three times.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
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
    """Return ResNet-50 without its classifier: (N, 3, H, W) to (N, 2048, H/32, W/32).

    Its children are conv1, bn1, relu, maxpool and layer1 to layer4 (256, 512, 1024 and 2048
    channels at strides 4, 8, 16 and 32), so a slice of it is a shallower trunk of the same names.
    Batch norms are frozen: statistics and scales are constants, as is usual in detectors, whose
    batches are too small to estimate them.
    """
    whole = ResNet(_FoldedBottleneck, list(RESNET50_BLOCKS), norm_layer=_ConstantBatchNorm)
    trunk = nn.Sequential()
    for name, child in whole.named_children():
        if name not in ("avgpool", "fc"):
            trunk.add_module(name, child)
    return trunk


def vgg16_trunk(dropout: float) -> nn.ModuleDict:
    """Return the parts of VGG16: `features`, to (N, 512, H/8, W/8), and `classifier`.

    `classifier` maps pooled features (R, 512 * 7 * 7) to (R, 4096) by two layers with `dropout`
    after each. The fourth pooling is left out and the convolutions after it are dilated by 2, which
    keeps what the weights mean at twice the resolution; the fifth makes way for region pooling.
    Source: OICR and wetectron, whose VGG16 has stride 8 in this way.
    """
    whole = vgg16(weights=None, dropout=dropout)
    features = whole.features[:_VGG_POOL5]
    features[_VGG_POOL4] = nn.Identity()
    for place in _VGG_CONV5:
        features[place].dilation = features[place].padding = (2, 2)
    return nn.ModuleDict({"features": features, "classifier": whole.classifier[:6]})


def freeze_stages(trunk: nn.Module, count: int) -> None:
    """Make constants of the first `count` of a trunk's five stages: 0 none, 2 the usual choice."""
    if isinstance(trunk, nn.ModuleDict):
        features = trunk["features"]
        assert isinstance(features, nn.Sequential)
        parts = [features[slice(*places)] for places in _VGG_STAGES[:count]]
    else:
        parts = [getattr(trunk, name) for names in _RESNET_STAGES[:count] for name in names]
    for part in parts:
        part.requires_grad_(False)


def find_imagenet_weights(path: Path, sha256: str | None, key: str) -> None:
    """Raise what `load_imagenet_weights` raises if the file is not there, or is another one."""
    if not path.is_file():
        raise FileNotFoundError(
            f"params.yaml: {key}.weights: {path.absolute()} is not there; torchvision's page of"
            " models links its ImageNet weights. null starts from random weights"
        )
    check_digest(path, sha256, f"{key}.sha256")


def load_imagenet_weights(
    module: nn.Module, path: Path, sha256: str | None, key: str = "backbone"
) -> dict[str, int]:
    """Put a state dict of torchvision into a whole trunk; return how many keys were left out.

    Args:
        module: what a builder of this file returned.
        path: a torchvision checkpoint on this machine; nothing is downloaded.
        sha256: of the file; None: not checked.
        key: the mapping in params.yaml with keys `weights` and `sha256`, for error messages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another digest, no checkpoint, or weights that are missing, unexpected or of
            another shape; the message lists them.
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
