"""Which device, how exactly, and that what a stage computes stays on the device of its input."""

import os

import pytest
import torch

from stages.activation.params import ActivationParams
from stages.activation.rounds import iterate_masking
from stages.activation.targets import find_targets
from stages.common.captions import MentionFinder
from stages.common.devices import choose_device, compute_device, own_kernels, prepare_device
from stages.common.params import read_exactness
from stages.common.seeding import torch_generator
from stages.masks.segment import make_crops, segment_crops
from stages.models.global_batch import Draws
from stages.models.mask_pasting import paste_masks
from stages.models.wspn import class_scores
from stages.models.wspn_ranking import order_in_layers
from stages.vlm import train
from stages.vlm.params import VlmParams
from stages.vlm.words import WordSwapper, substitution_weights
from tests.stages import test_activation, test_masks, test_vlm
from tests.stages.small_albef import CAPTIONS, small_albef
from tests.stages.test_wspn import random_boxes, small_model
from tests.stages.tiny_detector import tiny_detector


@pytest.fixture
def cuda(monkeypatch):
    """Let torch claim a CUDA device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("DEVICE", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def test_auto_takes_cuda_or_else_the_processor(cuda, monkeypatch):
    assert compute_device() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "3")  # of one process among several
    assert compute_device() == torch.device("cuda", 3)
    monkeypatch.setenv("DEVICE", "cpu")
    assert compute_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setenv("DEVICE", "auto")
    assert compute_device() == torch.device("cpu")
    monkeypatch.setenv("DEVICE", "mps")
    assert compute_device() == torch.device("mps")


@pytest.mark.parametrize("wanted", ["cuda", "mps"])
def test_an_absent_device_is_named(monkeypatch, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setenv("DEVICE", wanted)
    with pytest.raises(ValueError, match=rf"DEVICE={wanted}: torch .* no such .* DEVICE=auto"):
        compute_device()


def test_an_unknown_device_is_refused(monkeypatch):
    monkeypatch.setenv("DEVICE", "gpu")
    with pytest.raises(ValueError, match="DEVICE='gpu': expected one of auto, cuda, mps, cpu"):
        compute_device()


def test_equal_bytes_are_made_on_the_processor(cuda, monkeypatch):
    assert choose_device("bytes") == torch.device("cpu")
    assert choose_device("device").type == choose_device("band").type == "cuda"
    monkeypatch.setenv("DEVICE", "cuda")
    with pytest.raises(ValueError, match=r"DEVICE=cuda, but .*deterministic: bytes .*processor"):
        choose_device("bytes")


@pytest.mark.parametrize(("exactness", "precision"), [("device", "ieee"), ("band", "tf32")])
def test_exactness_sets_the_switches_of_cuda(cuda, monkeypatch, exactness, precision):
    taken = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    backends = torch.backends
    before = backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        assert prepare_device(exactness) == taken[0] == torch.device("cuda", 0)
        assert torch.are_deterministic_algorithms_enabled() == (exactness == "device")
        assert backends.cudnn.benchmark == (exactness == "band")
        assert backends.cuda.matmul.fp32_precision == precision
        assert backends.cudnn.conv.fp32_precision == precision
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(deterministic)
        backends.cudnn.benchmark = False
        backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision = before


def test_own_kernels_are_for_the_block_only():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with own_kernels():
            assert not torch.are_deterministic_algorithms_enabled()
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(before)


def test_an_unknown_exactness_names_the_key(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("deterministic: true\n")
    with pytest.raises(ValueError, match=r"deterministic: expected one of bytes, device, band"):
        read_exactness(path)


@pytest.fixture
def elsewhere():
    """Send every tensor that is made without a device to one where mixing with inputs fails."""
    with torch.device("meta"):
        yield


def test_the_fixture_finds_a_tensor_made_without_a_device(elsewhere):
    with pytest.raises(RuntimeError, match="meta"):
        torch.ones(2, device="cpu") + torch.arange(2)


# Inputs are made before the stage's functions run, as the stages do: on the processor.
with torch.device("cpu"):
    ALBEF, TOKENIZER = small_albef()
    TARGETS, _ = find_targets(
        [["a red cup and a dog"], ["two dogs"]],
        MentionFinder(test_activation.CATEGORIES),
        TOKENIZER,
    )
    IMAGES = test_activation.random_images(2)
    WSPN = small_model()


@pytest.mark.parametrize("scope", ["object", "image"])
def test_activation_follows_its_input(elsewhere, scope):
    params = ActivationParams.model_validate(
        test_activation.PARAMS | {"mask_scope": scope, "reach": 1.0}
    )
    maps, scores = iterate_masking(ALBEF, IMAGES, TARGETS, params)
    assert maps.device.type == scores.device.type == "cpu"


@pytest.mark.parametrize("foreground", ["most_activated", "random_activated"])
def test_masks_follow_their_input(foreground):
    seeds = test_masks.SEEDS | {"foreground": foreground, "background": "border"}
    params = test_masks.params(seeds=seeds, steps=2)
    image, activation, boxes, _ = test_masks.disc_scene()
    crops, generator = make_crops(image, activation, boxes, params), torch_generator(0, "masks")
    with torch.device("meta"):
        assert segment_crops(crops, params, generator).shape == (1, 16, 16)


def test_ranking_follows_its_input(elsewhere):
    boxes = torch.from_numpy(random_boxes(1, 20))
    maps = WSPN.feature_maps(IMAGES[:1])
    scores = class_scores(*WSPN.class_logits(WSPN.appearance(maps, boxes))).amax(1)
    rows, _ = order_in_layers(boxes, scores, [0.5, 0.7])
    quality, _ = WSPN.objects(WSPN.evidence(maps, boxes))
    assert rows.device.type == quality.device.type == "cpu"


def test_the_detector_follows_its_input():
    model = tiny_detector().train()
    images = [torch.rand(3, 64, 64) for _ in range(2)]
    boxes = torch.tensor([[8.0, 8.0, 30.0, 30.0]])
    masks = torch.ones(1, 64, 64, dtype=torch.uint8)
    targets = [{"boxes": boxes, "labels": torch.tensor([1]), "masks": masks} for _ in images]
    # Not what is torchvision's alone: it makes single numbers on the processor and sends them.
    batch, targets, features, boxes, _ = model._propose(images, targets, Draws())
    with torch.device("meta"):
        losses = model.regions.losses(features, boxes, batch.image_sizes, targets, None, 0.5)
        pasted = paste_masks(masks[:, :8, :8].float(), targets[0]["boxes"], (64, 64))
    assert all(loss.device.type == "cpu" for loss in losses.values())
    assert pasted.any()


def test_the_vlms_losses_follow_their_input():
    params = VlmParams.model_validate(test_vlm.PARAMS | {"swaps": 2})
    tokens, words = TOKENIZER.encode(CAPTIONS), TOKENIZER.content_words()
    images = test_activation.random_images(len(CAPTIONS))
    count = len(TOKENIZER)
    swapper = WordSwapper(words, substitution_weights(tokens, words, count), count)
    generator = torch_generator(0, "text")
    with torch.device("meta"):
        losses = train._fuse_losses(
            ALBEF, images, tokens, (0, 0), words, swapper, params, generator
        )
    assert all(torch.isfinite(loss) for loss in losses.values())
