"""FCOS-MO by the numbers of its equations, and where its locations and masks lie."""

import copy
from math import log, sqrt

import pytest
import torch
from torch import nn

from stages.models.architectures.fcos_mo.heads import SigmoidClassifier, focal_terms
from stages.models.architectures.fcos_mo.locations import (
    BACKGROUND,
    LEFT_OUT,
    Grid,
    centerness,
    edge_distances,
)
from stages.models.architectures.fcos_mo.params import FocalParams
from stages.models.backbones.roi_align import first_centre
from stages.models.detection.detector import LossSettings, to_unit_range
from stages.models.detection.params import network_params
from stages.models.detection.text_classifier import TextClassifier
from tests.support.receptive_fields import CENTRE_TOLERANCE, make_even, receptive_centre
from tests.support.tiny_detector import EMBEDDINGS, annotate, draw
from tests.support.tiny_fcos_mo import NETWORK, RESNET, tiny_fcos_mo

FOCAL = FocalParams(alpha=0.25, gamma=2.0, prior=0.01)
GRID = Grid((4, 8), central=True, limits=(6.0,))  # of an image of 16×16: 16 and 4 locations
CPU = torch.device("cpu")


def test_focal_loss_of_even_odds():
    # Eq. 5 with p = 1/2: a (1/2)² log 2, where a is 1/4 of the class and 3/4 of every other.
    terms = focal_terms(torch.zeros(2, 3), torch.tensor([0, 2]), FOCAL)
    own, other = 0.25 * 0.25 * log(2), 0.75 * 0.25 * log(2)
    torch.testing.assert_close(terms, torch.tensor([3 * other, own + 2 * other]))


def test_a_class_that_is_not_annotated_has_negatives_only_at_objects_of_other_classes():
    terms = focal_terms(torch.zeros(2, 3), torch.tensor([0, 2]), FOCAL, torch.tensor([1]))
    own, other = 0.25 * 0.25 * log(2), 0.75 * 0.25 * log(2)
    torch.testing.assert_close(terms, torch.tensor([other, own + 2 * other]))


def test_classes_begin_at_the_prior_and_are_told_from_the_background():
    texts = TextClassifier(2, torch.eye(2), "dot", 1.0, "learned")
    texts.projection.weight.data, texts.background.data = torch.eye(2), torch.tensor([1.0, 1.0])
    logits = SigmoidClassifier(texts, prior=0.2)(torch.tensor([[[0.0, 0], [3.0, 4.0]]]), [1, 0])
    prior = log(0.2 / 0.8)
    torch.testing.assert_close(
        logits, torch.tensor([[[prior] * 2, [4 - 7 + prior, 3 - 7 + prior]]])
    )


def test_centerness_of_a_location():
    # Eq. 3: sqrt(min(l, r) / max(l, r) · min(t, b) / max(t, b)) of (left, top, right, bottom).
    found = centerness(torch.tensor([[1.0, 2, 3, 4], [5.0, 5, 5, 5]]))
    torch.testing.assert_close(found, torch.tensor([sqrt(1 / 3 * 2 / 4), 1.0]))


def test_locations_lie_where_the_cells_of_their_level_look():
    found = GRID.locations((8, 16), CPU)
    fine = [[x, y] for y in (2.0, 6.0) for x in (2.0, 6.0, 10.0, 14.0)]
    assert found.centres.tolist() == [*fine, [4.0, 4.0], [12.0, 4.0]]
    assert found.per_level == [8, 2] and found.strides.tolist() == [4.0] * 8 + [8.0] * 2
    odd = Grid((4,), central=False, limits=()).locations((8, 4), CPU)
    assert odd.centres.tolist() == [[0.5, 0.5], [0.5, 4.5]]


def assign(boxes: list[list[float]], labels: list[int], radius: float) -> list[int]:
    locations = GRID.locations((16, 16), CPU)
    return locations.assign(torch.tensor(boxes), torch.tensor(labels), radius).tolist()


def test_an_object_is_learned_on_the_level_of_its_largest_distance():
    # From (2, 2), (6, 2), (2, 6), (6, 6) no edge of 0..8 is farther than 6 pixels: the fine level.
    fine = [0 if row < 2 and column < 2 else BACKGROUND for row in range(4) for column in range(4)]
    assert assign([[0.0, 0, 8, 8]], [1], 10.0) == [*fine, *[BACKGROUND] * 4]
    # A box of 0..16 is at least 8 from an edge everywhere: the coarse level.
    assert assign([[0.0, 0, 16, 16]], [1], 10.0) == [BACKGROUND] * 16 + [0] * 4


def test_only_locations_near_the_centre_learn():
    # The centre is (5, 5), half a stride is 2 pixels: of the fine level the location (6, 6) alone.
    found = assign([[0.0, 0, 10, 10]], [1], 0.5)
    assert [place for place, own in enumerate(found) if own == 0] == [5]


def test_of_two_objects_the_smaller_is_learned():
    found = assign([[0.0, 0, 8, 8], [4, 4, 8, 8]], [1, 2], 10.0)
    assert [found[place] for place in (0, 1, 4, 5)] == [0, 0, 0, 1]


def test_what_lies_in_an_ignored_box_is_no_background():
    found = assign([[0.0, 0, 8, 8], [4.0, 4, 16, 16]], [1, -1], 10.0)
    assert found[5] == 0  # of an object all the same
    assert [found[k] for k in (6, 10, 15)] == [LEFT_OUT] * 3
    assert found[3] == found[12] == BACKGROUND
    assert (
        GRID.locations((16, 16), CPU)
        .assign(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 1.5)
        .tolist()
        == [BACKGROUND] * 20
    )


def test_perfect_distances_give_back_the_boxes():
    locations = GRID.locations((16, 16), CPU)
    box = torch.tensor([3.0, 1, 15, 9])
    found = locations.boxes(edge_distances(locations.centres, box))
    torch.testing.assert_close(found, box.expand(20, 4))


@pytest.mark.parametrize(("side", "level"), [(8.0, 0), (12.0, 0), (12.5, 1), (90.0, 1)])
def test_the_instance_is_read_on_the_level_that_learns_its_centre(side, level):
    assert GRID.level(torch.tensor([[5.0, 5, 5 + side / 2, 5 + side]])).tolist() == [level]


@pytest.mark.parametrize("changes", [{}, RESNET])
def test_locations_see_what_lies_around_them(changes):
    model = make_even(tiny_fcos_mo(**changes))
    side = 256
    locations = model.grid.locations((side, side), CPU)

    def said(image, number):
        levels = list(model.backbone(image).values())[-len(model.grid.strides) :]
        cells = side // model.grid.strides[number]
        before = sum(locations.per_level[:number])
        own = model.dense(levels).centerness_logits[:, before : before + cells**2]
        return own.unflatten(1, (1, cells, cells))

    for norm in (m for m in model.modules() if isinstance(m, nn.GroupNorm)):
        norm.forward = lambda x: x  # whose gradient is of the whole map
    for number, stride in enumerate(model.grid.strides[:2]):  # what coarser cells see is cut off
        cell = side // stride // 2
        drawn = first_centre(stride, model.grid.central) + cell * stride
        seen = receptive_centre(lambda x, k=number: said(x, k), side, cell, draws=1)
        assert seen == pytest.approx((drawn, drawn), abs=CENTRE_TOLERANCE)


def losses(model, weights=None, background_weight=1.0, **target) -> dict[str, torch.Tensor]:
    """Return the losses of a disc and a box that weigh so much."""
    image, masks = draw(1)
    boxes = [a["bbox"] for a in annotate([1])["annotations"]]
    target = {
        "boxes": torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes]),
        "labels": torch.tensor([1, 2]),
        "masks": torch.stack([torch.from_numpy(masks[k]).to(torch.uint8) for k in (3, 5)]),
        **target,
    }
    if weights is not None:
        target["weights"] = torch.tensor(weights)
    torch.manual_seed(0)
    settings = LossSettings(None, background_weight)
    return model.train().losses([to_unit_range(image)], [target], settings)


def numbers(*arguments, **target) -> dict[str, float]:
    found = losses(tiny_fcos_mo(), *arguments, **target)
    return {name: loss.item() for name, loss in found.items()}


def test_objects_weigh_what_they_teach():
    whole = numbers()
    assert numbers([[1.0] * 3] * 2) == pytest.approx(whole, rel=1e-5)
    half = numbers([[1.0, 0.5, 0.5]] * 2)
    for name in ("box", "centerness", "mask"):
        assert half[name] == pytest.approx(whole[name] / 2, rel=1e-5), name
    assert half["classification"] == pytest.approx(whole["classification"], rel=1e-5)
    disc, box = (numbers([[own] * 3, [1 - own] * 3]) for own in (1.0, 0.0))
    background = numbers([[0.0] * 3] * 2)
    assert background["box"] == background["mask"] == 0 < background["classification"]
    for name, value in whole.items():
        both = disc[name] + box[name] - background[name]
        assert both == pytest.approx(value, rel=1e-4), name


def test_background_weighs_what_the_training_says():
    locations = numbers([[0.0] * 3] * 2, 1.0)["classification"]
    assert numbers([[0.0] * 3] * 2, 0.5)["classification"] == pytest.approx(locations / 2, rel=1e-5)


def test_an_object_without_a_mask_moves_no_mask_weight():
    model = tiny_fcos_mo()
    found = losses(model, [[1.0, 1.0, 0.0]] * 2, masks=torch.zeros(2, 64, 64, dtype=torch.uint8))
    sum(found.values()).backward()
    moved = {k: {p.grad is not None for p in v.parameters()} for k, v in model.parts().items()}
    assert moved.pop("mask_head") == {False} and found["mask"] == 0
    assert set(map(frozenset, moved.values())) == {frozenset({True})}


def test_only_objects_of_others_push_a_class_that_the_image_does_not_annotate():
    def of(text: list[float], taught: float = 0.0, **target) -> float:
        embeddings = torch.stack([EMBEDDINGS[0], torch.tensor(text)])
        model = tiny_fcos_mo(embeddings, classifier=NETWORK["classifier"] | {"background": "zero"})
        disc = {"labels": torch.tensor([1, 1]), **target}
        return losses(model, [[taught] * 3] * 2, **disc)["classification"].item()

    texts = [0.0, 1, 0, 0, 0, 0, 0, 0], [0.0, 0, -3, 0, 0, 0, 0, 0]
    one, other = (of(text, annotated=torch.tensor([1])) for text in texts)
    assert one == other
    one, other = (of(text, 1.0, annotated=torch.tensor([1])) for text in texts)
    assert one != other
    one, other = map(of, texts)
    assert one != other


def test_masks_are_drawn_at_random_where_there_are_more_than_params_say():
    head = NETWORK["mask_head"]
    one = losses(tiny_fcos_mo(mask_head=head | {"objects_per_image": 1}))["mask"].item()
    each = [numbers([[1.0] * 3 if k == own else [1.0, 1, 0] for k in (0, 1)]) for own in (0, 1)]
    # Of one object there is the whole of its term, of two the half.
    assert any(one == pytest.approx(2 * found["mask"]) for found in each)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"backbone": {"kind": "resnet50_c4", "frozen_stages": 2}},
            "'resnet50_c4' .*'trunk', 'res",
        ),
        (
            {"locations": NETWORK["locations"] | {"regressed_up_to": [8.0]}},
            r"locations.regressed_up_to: expected 2 rising limits, .* found \[8.0\]",
        ),
        (
            {"mask_head": NETWORK["mask_head"] | {"depth": 52}},
            "(?s)mask_head.*crop_side: expected a multiple of 32, so that depth 52 .* found 16",
        ),
        (
            {"backbone": NETWORK["backbone"] | {"pyramid_width": 12}},
            "backbone.pyramid_width: expected a multiple of 8, found 12",
        ),
    ],
)
def test_a_network_that_cannot_be_is_told_by_key(changes, message):
    with pytest.raises(ValueError, match=message):
        network_params("fcos_mo").model_validate(copy.deepcopy(NETWORK | changes))
