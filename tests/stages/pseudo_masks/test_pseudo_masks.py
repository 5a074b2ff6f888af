"""Stage masks: seeds, the small networks trained at once, and pasting."""

import cv2
import numpy as np
import pytest
import torch

from stages.common.geometry.masks import decode_mask, encode_window, mask_iou
from stages.common.runtime.seeding import torch_generator
from stages.pseudo_masks.crops import inside_box, label_pixels, widen_boxes
from stages.pseudo_masks.network import forward, init_weights, seed_loss, train_networks
from stages.pseudo_masks.params import PseudoMasksParams, SeedParams
from stages.pseudo_masks.segment import (
    join_crops,
    keep_largest,
    make_crops,
    paste_mask,
    segment_crops,
)
from tests.support.images import disc_scene

SEEDS = {
    "foreground": "most_activated",
    "background": "least_activated",
    "foreground_fraction": 0.25,
    "background_fraction": 0.25,
}
PARAMS = {
    "method": "network",
    "activation_round": "last",
    "smoothing": 0.0,
    "threshold": 0.5,
    "crop_size": 16,
    "context": 0.25,
    "channels": 4,
    "coordinates": True,
    "steps": 30,
    "learning_rate": 0.05,
    "self_training": 0.0,
    "seeds": SEEDS,
    "largest_component": True,
    "batch_size": 8,
}


def params(**changes) -> PseudoMasksParams:
    return PseudoMasksParams.model_validate(PARAMS | changes)


def segment(scenes, settings):
    crops = join_crops([make_crops(i, a, b, settings) for i, a, b, _ in scenes])
    logits = segment_crops(crops, settings, torch_generator(0, "masks"))
    return [
        whole_mask(logit, box, (64, 64), settings.context, settings.largest_component)
        for logit, box in zip(logits, crops.boxes_xyxy, strict=True)
    ]


def whole_mask(logits, box_xyxy, image_hw, *settings):
    """Paste a mask and take it through the RLE that the stage writes, into its image."""
    window = paste_mask(logits, box_xyxy, image_hw, *settings)
    return decode_mask(encode_window(*window, image_hw), image_hw)


def test_widened_box_and_its_inside():
    widened = widen_boxes(torch.tensor([[10.0, 20.0, 30.0, 24.0]]), 0.25)
    assert widened.tolist() == [[5.0, 19.0, 35.0, 25.0]]
    inside = inside_box(12, 0.25)  # 12 pixels show 1.5 sides: the box is the middle 8
    assert int(inside.sum()) == 64
    assert inside[2:10, 2:10].all()


def test_paper_seeds_are_the_extremes_in_the_box():
    inside = inside_box(8, 0.5)  # the box is the middle 4 × 4
    activation = torch.arange(64.0).view(1, 8, 8)
    foreground, background = label_pixels(
        activation, inside, SeedParams(**SEEDS), torch_generator(0, "x")
    )
    within = activation[0, inside]
    assert sorted(activation[foreground].tolist()) == within.sort().values[-4:].tolist()
    assert sorted(activation[background & inside].tolist()) == within.sort().values[:4].tolist()
    assert background[0][~inside].all()
    assert not (foreground & background).any()


def test_official_seeds_are_activated_pixels_and_the_border():
    inside = inside_box(8, 0.5)
    activation = torch.zeros(1, 8, 8)
    activation[0, 3:5, 3:5] = 1.0
    seeds = SeedParams(**SEEDS | {"foreground": "random_activated", "background": "border"})
    foreground, background = label_pixels(activation, inside, seeds, torch_generator(0, "x"))
    assert (activation[foreground] == 1).all()
    assert foreground.sum() == 4
    assert int((background[0] & inside).sum()) == 12  # the border of 4 × 4


def test_seed_loss_by_hand():
    logits = torch.zeros(1, 4, 4)
    foreground = torch.zeros(1, 4, 4, dtype=torch.bool)
    foreground[0, 1, 1] = True
    inside = inside_box(4, 0.5)
    background = (~inside)[None].clone()
    background[0, 2, 2] = True
    log2 = torch.log(torch.tensor(2.0))
    loss = seed_loss(logits, foreground, background, inside, self_training=0.0)
    torch.testing.assert_close(loss, (2 * log2)[None])  # log 2 object + (log 2 + log 2) / 2
    loss = seed_loss(logits, foreground, background, inside, self_training=1.0)
    torch.testing.assert_close(loss, (3 * log2)[None])


@pytest.mark.parametrize("context", [0.0, 0.5])
def test_object_and_background_weigh_the_same(context):
    inside = inside_box(8, context)
    foreground, background = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    foreground[0, 3:5, 3:5] = True
    background[0] = ~inside
    background[0, 2, 2:6] = True
    logits = torch.zeros(1, 8, 8, requires_grad=True)
    loss = seed_loss(logits, foreground, background, inside, self_training=0.0)
    torch.testing.assert_close(loss.detach(), torch.full((1,), 2 * np.log(2)))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient[foreground].sum() == pytest.approx(-0.5)
    assert gradient[background].sum() == pytest.approx(0.5)


def test_batched_networks_equal_plain_convolutions():
    generator = torch_generator(1, "x")
    weights = init_weights(2, 3, 4, generator)
    weights = {name: w + torch.randn(w.shape, generator=generator) for name, w in weights.items()}
    x = torch.randn(2, 3, 9, 9, generator=generator)
    columns = torch.nn.functional.unfold(x, 3, padding=1)
    found = forward(weights, columns, 9)
    for k in range(2):
        h = torch.nn.functional.conv2d(
            x[k : k + 1],
            weights["weight1"][k].view(4, 3, 3, 3),
            weights["bias1"][k, :, 0],
            padding=1,
        ).relu()
        h = torch.nn.functional.conv2d(
            h, weights["weight2"][k].view(4, 4, 3, 3), weights["bias2"][k, :, 0], padding=1
        ).relu()
        h = torch.nn.functional.conv2d(
            h, weights["weight3"][k].view(1, 4, 1, 1), weights["bias3"][k, :, 0]
        )
        torch.testing.assert_close(found[k], h[0, 0], rtol=1e-4, atol=1e-5)


def test_masks_beat_box_and_threshold_on_a_disc():
    scenes = [disc_scene(), disc_scene((24, 24), 8)]
    found = {
        method: [
            mask_iou(mask, scene[3])
            for mask, scene in zip(segment(scenes, params(method=method)), scenes, strict=True)
        ]
        for method in ("network", "box", "threshold")
    }
    for network, box, threshold in zip(*found.values(), strict=True):
        assert network > box
        assert network > threshold


def test_mask_does_not_depend_on_its_batch():
    first, second = disc_scene(), disc_scene((24, 40), 7)
    settings = params(seeds=SEEDS | {"foreground": "random_activated"})
    together = segment([first, second], settings)
    np.testing.assert_array_equal(together[0], segment([first], settings)[0])
    np.testing.assert_array_equal(together[1], segment([second], settings)[0])


def test_mask_stays_in_its_box_and_image():
    logits = np.ones((16, 16), np.float32)
    mask = whole_mask(logits, np.array([-5, 50, 20, 80], np.float32), (64, 64), 0.25, False)
    assert mask[50:, :20].all()
    assert mask.sum() == 14 * 20


def test_masks_do_not_depend_on_the_size_of_the_photograph():
    image, activation, box, truth = disc_scene()
    found = []
    for factor in (1, 16):  # at 16, the window is shrunk before it is cut
        large = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
        crops = make_crops(large, activation, box * factor, params())
        logits = segment_crops(crops, params(), torch_generator(0, "masks"))
        mask = whole_mask(logits[0], box[0] * factor, large.shape[:2], 0.25, True)
        found.append(cv2.resize(mask.astype(np.uint8), (64, 64), interpolation=cv2.INTER_AREA) > 0)
    assert mask_iou(found[0], truth) > 0.7
    assert mask_iou(*found) > 0.9


def test_keep_largest():
    mask = np.zeros((8, 8), bool)
    mask[0:2, 0:2] = True
    mask[4:8, 4:8] = True
    assert keep_largest(mask).sum() == 16
    assert not keep_largest(np.zeros((3, 3), bool)).any()


def test_training_lowers_the_loss():
    crops = join_crops([make_crops(*disc_scene()[:3], params())])
    inside = inside_box(16, 0.25)
    foreground, background = label_pixels(
        crops.activation, inside, params().seeds, torch_generator(0, "x")
    )
    losses = []
    for steps in (1, 30):
        logits = train_networks(
            crops.pixels,
            foreground,
            background,
            inside,
            4,
            steps,
            0.05,
            0.0,
            torch_generator(0, "w"),
        )
        losses.append(float(seed_loss(logits, foreground, background, inside, 0.0)))
    assert losses[1] < losses[0] / 2


def test_wrong_param_is_named(tmp_path):
    from stages.common.runtime.params import read_section

    file = tmp_path / "params.yaml"
    file.write_text("pseudo_masks: {method: networks, extra: 1}\n")
    with pytest.raises(ValueError, match=r"masks\.method.*found 'networks'") as error:
        read_section("pseudo_masks", PseudoMasksParams, file)
    assert "pseudo_masks.extra" in str(error.value)
    assert "allowed keys" in str(error.value)
