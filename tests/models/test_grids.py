"""Every cell of every backbone looks where it is drawn."""

import pytest
import torch
from torch import nn

from stages.models.architectures.mask_rcnn.heads import mask_head_loss
from stages.models.backbones.fpn import double
from stages.models.backbones.imagenet import vgg16_trunk
from stages.models.backbones.roi_align import first_centre, pool_regions
from stages.models.backbones.trunk import Trunk
from stages.models.detection.backbones import build_backbone
from stages.models.detection.params import (
    Resnet50C4Params,
    Resnet50FpnParams,
    TrunkParams,
)
from stages.models.detection.transform import ImageTransform
from tests.support.receptive_fields import CENTRE_TOLERANCE, make_even, receptive_centre
from tests.support.tiny_detector import RESNETS, tiny_detector

TRUNK = {"kind": "trunk", "stem_width": 8, "width": 16, "residual_blocks": 2, "pyramid_width": 8}
FPN = {"kind": "resnet50_fpn", "pyramid_width": 8, "frozen_stages": 0}
BACKBONES = {
    "trunk": TrunkParams.model_validate(TRUNK),
    "resnet50_fpn": Resnet50FpnParams.model_validate(FPN | {"extra_levels": "pool"}),
    "resnet50_fpn_p6p7": Resnet50FpnParams.model_validate(FPN | {"extra_levels": "p6p7"}),
    "resnet50_c4": Resnet50C4Params(kind="resnet50_c4", frozen_stages=0),
}


@pytest.mark.parametrize("kind", BACKBONES)
def test_cells_of_all_levels_look_at_their_centres(kind):
    backbone = make_even(build_backbone(BACKBONES[kind])[0])
    for number, stride in enumerate(backbone.level_strides):
        side = max(256, 8 * stride)  # the border is far from what the cell sees
        cell = side // stride // 2
        drawn = first_centre(stride, backbone.central) + cell * stride
        seen = receptive_centre(lambda x, k=str(number): backbone(x)[k], side, cell, draws=1)
        assert seen == pytest.approx((drawn, drawn), abs=CENTRE_TOLERANCE)


def test_cells_of_vgg16_look_at_their_centres():
    features = make_even(vgg16_trunk(0.0)["features"])
    seen = receptive_centre(features, 256, 16, draws=8)  # which pixel is the largest is chance
    drawn = first_centre(8, central=True) + 16 * 8
    assert seen == pytest.approx((drawn, drawn), abs=CENTRE_TOLERANCE)


@pytest.mark.parametrize("steps", [0, 100])
def test_a_trained_trunk_looks_where_its_cells_are_drawn(steps):
    torch.manual_seed(0)
    trunk, read = Trunk(8, 16, 0), nn.Conv2d(16, 3, 1)
    optimizer = torch.optim.Adam([*trunk.parameters(), *read.parameters()], 1e-2)
    for _ in range(steps):  # learn the mean colour of each cell's pixels
        fine, coarse = torch.rand(8, 3, 64, 64), torch.rand(8, 3, 16, 16)
        images = (fine + nn.functional.interpolate(coarse, scale_factor=4)) / 2
        goal = nn.functional.avg_pool2d(images, 8)
        loss = (read(trunk(images)[1]) - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trunk.eval()
    seen = receptive_centre(lambda x: trunk(x)[1], 128, 8, draws=16)
    assert seen == pytest.approx((68, 68), abs=CENTRE_TOLERANCE)


@pytest.mark.parametrize("central", [True, False])
def test_doubled_maps_keep_a_ramp(central):
    # A map that says which row its cells look at goes on doing so at twice the resolution.
    rows = first_centre(8, central) + 8 * torch.arange(6.0)
    ramp = rows.view(1, 1, 6, 1).expand(1, 1, 6, 3)
    fine = double(ramp, 2, central)[0, 0, :, 0]
    expected = first_centre(4, central) + 4 * torch.arange(12.0)
    torch.testing.assert_close(fine[1:-1], expected[1:-1])
    assert fine[0] >= expected[0]  # the border is level
    assert fine[-1] <= expected[-1]


@pytest.mark.parametrize(("stride", "centre"), [(8, 4.0), (16, 0.5)])
@pytest.mark.parametrize("side", [32, 80])  # by our products, and by torchvision's loop
def test_pooled_cells_show_what_lies_there(stride, centre, side):
    places = centre + stride * torch.arange(float(side))
    features = torch.stack(torch.meshgrid(places, places, indexing="ij"))[None]
    box = torch.tensor([[40.0, 60.0, 104.0, 188.0]])
    pooled = pool_regions(features, box, torch.tensor([0]), 4, stride, centre)[0]
    torch.testing.assert_close(pooled[0, :, 0], torch.tensor([76.0, 108.0, 140.0, 172.0]))
    torch.testing.assert_close(pooled[1, 0], torch.tensor([48.0, 64.0, 80.0, 96.0]))


@pytest.mark.parametrize("kind", BACKBONES)
def test_anchors_lie_around_what_their_cells_look_at(kind):
    model = tiny_detector(**RESNETS.get(kind, {}))
    for number, anchors in enumerate(model.proposals.anchor_generator.cell_anchors):
        middle = (anchors[:, :2] + anchors[:, 2:]) / 2
        stride = model.backbone.strides[0] << number
        expected = first_centre(stride, model.backbone.central)
        torch.testing.assert_close(middle, torch.full_like(middle, expected))


def test_a_mask_is_learned_where_it_is():
    # The logit of the covered share is the best answer: its mask, and not that half a pixel beside.
    mask = torch.zeros(1, 40, 40, dtype=torch.uint8)
    mask[0, 10:30, 13:21] = 1
    box = torch.tensor([[5.0, 5.0, 33.0, 33.0]])
    logits = torch.zeros(1, 28, 28, requires_grad=True)
    loss = mask_head_loss(logits, [box], [mask], [torch.tensor([0])])
    (gradient,) = torch.autograd.grad(loss, logits)
    learned = gradient[0] < 0
    assert learned.nonzero().amin(0).tolist() == [5, 8]
    assert learned.nonzero().amax(0).tolist() == [24, 15]
    assert int(learned.sum()) == 20 * 8
    nothing = mask_head_loss(logits[:0], [box[:0]], [mask], [torch.zeros(0, dtype=torch.int64)])
    assert nothing == 0


@pytest.mark.parametrize("side", [427, 480, 640, 400, 800])
def test_masks_stay_where_their_image_is_resized(side):
    """On average over many, in pixels of the resized image; torchvision moves them by a half.

    Where pixels of the image end on the centres of new ones, as from 480 to 800, these are ties.
    """
    transform = ImageTransform(800, 1333, [0.0] * 3, [1.0] * 3)
    masks = torch.zeros(60, side, side, dtype=torch.uint8)
    for k, mask in enumerate(masks):
        mask[k : 2 * k + 90, 7 + k : 40 + 3 * k] = 1
    corners = [[7.0 + k, k, 40 + 3 * k, 2 * k + 90] for k in range(60)]
    target = {"boxes": torch.tensor(corners), "masks": masks}
    _, (resized,) = transform([torch.zeros(3, side, side)], [target])
    found = torch.stack([m.nonzero().float().mean(0).flip(0) + 0.5 for m in resized["masks"]])
    true = (resized["boxes"][:, :2] + resized["boxes"][:, 2:]) / 2
    assert (found - true).mean(0).abs().max() < 0.2
    none = {"boxes": torch.zeros(0, 4), "masks": masks[:0]}
    assert transform([torch.zeros(3, side, side)], [none])[1][0]["masks"].shape == (0, 800, 800)
