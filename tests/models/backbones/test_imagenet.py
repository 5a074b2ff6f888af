import hashlib

import pytest
import torch
from torch import nn
from torchvision.models import resnet50, vgg16
from torchvision.ops.misc import FrozenBatchNorm2d

from stages.models.backbones.imagenet import (
    freeze_stages,
    load_imagenet_weights,
    resnet50_trunk,
    vgg16_trunk,
)

IMAGE = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory):
    torch.manual_seed(0)
    model = resnet50(weights=None).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training: not the identity
            module.running_var.uniform_(0.5, 2)
            module.running_mean.normal_(0, 0.1)
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(model.state_dict(), path)
    with torch.no_grad():
        x = model.maxpool(model.relu(model.bn1(model.conv1(IMAGE))))
        expected = model.layer4(model.layer3(model.layer2(model.layer1(x))))
    return path, expected


def test_a_file_of_torchvision_gives_the_features_of_torchvision(resnet_file):
    path, expected = resnet_file
    trunk = resnet50_trunk()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    left_out = load_imagenet_weights(trunk, path, digest.upper())
    assert left_out == {"imagenet_classifier": 2, "batch_counts": 53}
    with torch.no_grad():
        found = trunk.train()(IMAGE)  # frozen statistics in training mode as well
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())
        stride8 = trunk[:6](IMAGE)
    assert stride8.shape == (1, 512, 8, 8)
    assert {name.split(".")[0] for name in trunk[:6].state_dict()} == {
        "conv1", "bn1", "layer1", "layer2",
    }  # fmt: skip


def test_norms_folded_into_convolutions_give_the_gradients_of_norms_after_them(resnet_file):
    path, _ = resnet_file
    trunk, plain = resnet50_trunk(), resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    load_imagenet_weights(trunk, path, None)
    plain.load_state_dict(torch.load(path, weights_only=True), strict=False)
    maps = torch.randn(2, 1024, 8, 8, generator=torch.Generator().manual_seed(2))
    passes, results = [], []
    for module in trunk.layer4.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.register_forward_hook(lambda *_: passes.append(1))
    for stage in (trunk.layer4, plain.layer4.to(memory_format=torch.channels_last)):
        out = stage(maps)
        out.square().mean().backward()
        results.append([out.detach(), *(parameter.grad for parameter in stage.parameters())])
    assert len(results[0]) == 1 + 10 and passes == []
    for found, expected in zip(*results, strict=True):
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = trunk.layer4(maps)
    assert half.dtype == torch.bfloat16
    assert (half - results[0][0]).abs().max() < 0.02 * results[0][0].abs().max()


def test_vgg16_has_stride_8_and_torchvisions_names(tmp_path):
    path = tmp_path / "vgg16.pth"
    whole = vgg16(weights=None, init_weights=False)
    first_layer = torch.zeros(1, 1).expand(4096, 25088)  # stored as one number
    torch.save(whole.state_dict() | {"classifier.0.weight": first_layer}, path)
    with torch.device("meta"):  # takes the tensors themselves
        trunk = vgg16_trunk(0.5).eval()
    assert load_imagenet_weights(trunk, path, None) == {"imagenet_classifier": 2}
    with torch.no_grad():
        assert trunk["features"](IMAGE).shape == (1, 512, 8, 8)
    assert torch.equal(trunk["features"][28].weight, whole.features[28].weight)
    # dilation keeps what conv5 sees: every second cell of the undilated map at twice the stride
    cells = torch.randn(1, 512, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        dense = trunk["features"][24](cells)[:, :, ::2, ::2]
        sparse = whole.features[24](cells[:, :, ::2, ::2])
    assert torch.allclose(dense, sparse, atol=1e-4)


def test_a_missing_or_foreign_file_is_named(tmp_path, resnet_file):
    trunk = resnet50_trunk()
    with pytest.raises(FileNotFoundError, match=r"wspn\.model\.backbone\.weights: .*no\.pth"):
        load_imagenet_weights(trunk, tmp_path / "no.pth", None, "wspn.model.backbone")
    with pytest.raises(ValueError, match=r"SHA-256 is .* backbone\.sha256 says 00"):
        load_imagenet_weights(trunk, resnet_file[0], "00")
    state = torch.load(resnet_file[0], weights_only=True)
    state["layer9.weight"] = state.pop("conv1.weight")
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"missing weights: conv1.*unexpected weights: layer9"):
        load_imagenet_weights(trunk, tmp_path / "odd.pth", None)
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match=r"text\.pth: cannot be read as torch weights"):
        load_imagenet_weights(trunk, tmp_path / "text.pth", None)


@pytest.mark.parametrize("count", [0, 2, 5])
def test_frozen_stages_of_both_trunks(count):
    trunk = resnet50_trunk()
    freeze_stages(trunk, count)
    names = ["conv1", "layer1", "layer2", "layer3", "layer4"]
    assert [trunk.get_submodule(n).parameters().__next__().requires_grad for n in names] == [
        place >= count for place in range(5)
    ]
    with torch.device("meta"):
        vgg = vgg16_trunk(0.5)
    freeze_stages(vgg, count)
    learnt = [p.requires_grad for p in vgg["features"].parameters()][::2]
    blocks = [2, 2, 3, 3, 3]
    assert learnt == [k >= count for k, size in enumerate(blocks) for _ in range(size)]
    assert all(p.requires_grad for p in vgg["classifier"].parameters())
