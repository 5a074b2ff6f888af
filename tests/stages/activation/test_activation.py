"""Stage activation: GradCAM of eq. 1-3, iterative masking of eq. 4, words that name a class."""

import json
from dataclasses import asdict

import pytest
import torch

import stages.activation.__main__ as stage
from stages.activation.gradcam import normalise_maps, token_activation
from stages.activation.rounds import iterate_masking
from stages.activation.targets import choose_captions, make_finder
from stages.common.formats.images import write_images
from stages.common.runtime.storage import read_tensors, write_json
from stages.models.vision_language.small_albef import save_small_albef
from tests.support.small_albef import (
    ACTIVATION_PARAMS,
    CATEGORIES,
    activation_params,
    random_images,
    small_albef,
    targets_of,
)
from tests.support.tiny_detector import make_image


def test_targets_by_token_with_plural_multi_word_and_all_captions():
    _, tokenizer = small_albef()
    captions = [["two cups and a dog", "a cup near a hot dog"], ["a hat"], ["a red hat"]]
    targets, classes, cut_off = targets_of(captions, tokenizer)
    assert classes == [1, 2, 4]
    assert cut_off == 0
    assert targets.image.tolist() == [0, 0, 2]
    words = [tokenizer.words[i] for i in targets.tokens[0, 0].tolist()]
    assert words[:7] == ["[CLS]", "two", "cup", "##s", "and", "a", "dog"]
    assert targets.weights[0, 0].nonzero()[:, 0].tolist() == [2, 3]  # "cups" is two tokens
    assert targets.weights[0, 1].nonzero()[:, 0].tolist() == [2]  # and the second caption counts
    assert targets.weights[1].nonzero().tolist() == [[0, 6]]  # not the dog of "hot dog"
    assert targets.weights[2, 0].sum() == 2


def test_mentions_behind_the_tokenizers_limit_are_counted_as_cut_off():
    _, tokenizer = small_albef()
    long = "a cup " + "and a park " * 4 + "and a dog , a dog and a red hat"
    targets, classes, cut_off = targets_of([[long, "a dog"], [long]], tokenizer)
    assert tokenizer.max_tokens == 16
    assert (classes, targets.image.tolist()) == ([1, 2, 1], [0, 0, 1])
    assert cut_off == 6  # both dogs and the hat, in both images


def test_one_caption_of_an_image_is_drawn_whatever_the_others_are():
    captions = {k: [f"{k} {n}" for n in range(5)] for k in range(40)} | {99: []}
    one = activation_params(captions="one")
    drawn = {k: choose_captions(captions, k, one, 0) for k in captions}
    assert drawn[99] == [] and choose_captions(captions, 7, activation_params(), 0) == captions[7]
    assert all(len(drawn[k]) == 1 and drawn[k][0] in captions[k] for k in range(40))
    assert {drawn[k][0].split()[1] for k in range(40)} == set("01234")
    assert drawn[3] == choose_captions({3: captions[3]}, 3, one, 0)
    assert drawn != {k: choose_captions(captions, k, one, 1) for k in captions}


def test_names_alone_leave_plurals_and_synonyms_out():
    finder = make_finder(CATEGORIES, activation_params(forms="name"))
    assert finder.classes(["two cups", "dogs and hats", "a hot dog"]) == set()
    assert finder.classes(["a cup", "a Red Hat"]) == {1, 4}
    assert make_finder(CATEGORIES, activation_params()).classes(["two cups"]) == {1}


@pytest.fixture
def run_stage(tmp_path, monkeypatch):
    """Give a function from the captions of each image to the tensors and facts of the stage."""
    monkeypatch.chdir(tmp_path)

    def run(captions, **changes):
        settings = {"seed": 0, "deterministic": "device", "activation": ACTIVATION_PARAMS | changes}
        (tmp_path / "params.yaml").write_text(json.dumps(settings))
        download = tmp_path / "data/download"
        write_images(download / "images/train/0.parquet", map(make_image, captions))
        entries = [{"image_id": key, "captions": texts} for key, texts in captions.items()]
        write_json(download / "captions/train/0.json", entries)
        write_json(download / "categories.json", [asdict(category) for category in CATEGORIES])
        if not (tmp_path / "data/vlm").exists():
            save_small_albef(tmp_path / "data/vlm/model.safetensors", *small_albef())
        stage.main("0")
        return read_tensors(tmp_path / "data/activation/0.safetensors")

    return run


@pytest.mark.parametrize("padding", [0, 4])
def test_the_stage_tells_how_many_mentions_were_cut_off(padding, run_stage, capsys):
    captions = ["a cup " + "and a park " * padding + "and a dog", "a dog"]
    tensors, facts = run_stage({1: captions, 2: captions[:1]})
    told = "2 mentions of classes do not count, because the model reads only the first 16 tokens"
    if padding:
        assert facts["mentions_cut_off"] == 2
        assert told in capsys.readouterr().err
        assert tensors["category_id"].tolist() == [1, 2, 1]
    else:
        assert facts == {"images": 2, "images_without_target": 0}
        assert tensors["category_id"].tolist() == [1, 2, 1, 2]


def test_an_image_size_of_part_patches_is_refused(run_stage):
    with pytest.raises(ValueError, match=r"activation\.image_size: 60 is not a multiple of 8"):
        run_stage({1: ["a cup"]}, image_size=60)


@pytest.mark.parametrize("captions", [{}, {1: ["a park"], 2: []}])
def test_a_shard_without_images_or_targets_gives_no_rows_of_the_same_types(captions, run_stage):
    some, _ = run_stage({1: ["a cup"]})
    none, facts = run_stage(captions)
    assert facts == {"images": len(captions), "images_without_target": len(captions)}
    assert none.keys() == some.keys()
    for name, tensor in none.items():
        assert tensor.dtype == some[name].dtype
        assert tensor.shape == (0, *some[name].shape[1:])


def test_a_model_without_gradient_gives_constant_maps_and_no_target(run_stage, tmp_path):
    model, tokenizer = small_albef()
    torch.nn.init.zeros_(model.matching_head.weight)
    save_small_albef(tmp_path / "data/vlm/model.safetensors", model, tokenizer)
    tensors, facts = run_stage({1: ["a cup"], 2: ["a dog and a cup"], 3: ["a park"]})
    assert len(tensors["maps"]) == len(tensors["image_id"]) == 0
    assert facts == {
        "images": 3,
        "images_without_target": 3,
        "constant_maps": [
            {"image_id": image_id, "category_id": category_id}
            for image_id, category_id in ((1, 1), (2, 1), (2, 2))
        ],
    }


@pytest.mark.parametrize("constant", [0, 2])  # the first round, and the union of all rounds
def test_a_target_is_left_out_if_a_map_of_it_is_constant(constant, run_stage, monkeypatch):
    captions = {1: ["a cup"], 2: ["a dog and a cup"]}
    every, _ = run_stage(captions)
    original = iterate_masking

    def one_is_constant(*arguments):
        maps, scores = original(*arguments)
        maps[1, constant] = 0.25
        maps[2, 1] = 0  # a round that no later stage uses
        return maps, scores

    monkeypatch.setattr("stages.activation.maps.iterate_masking", one_is_constant)
    kept, facts = run_stage(captions)
    assert facts["constant_maps"] == [{"image_id": 2, "category_id": 1}]
    assert facts["images_without_target"] == 0
    assert kept["image_id"].tolist() == [1, 2] and kept["category_id"].tolist() == [1, 2]
    assert torch.equal(kept["matching_score"], every["matching_score"][[0, 2]])
    assert torch.equal(kept["maps"][:, [0, -1]], every["maps"][[0, 2]][:, [0, -1]])


def test_activation_is_attention_times_positive_gradient():
    """Worked against eq. 3 with the gradient taken by finite differences of S."""
    model, tokenizer = small_albef()
    model = model.double()
    images = random_images(1).double()
    tokens = tokenizer.encode(["a red cup"])[None]
    with torch.no_grad():
        context = model.fusion_context(model.encode_image(images))
        text = model.encode_text(tokens[0])
    phi, score = token_activation(model, images, tokens, 0)
    _, attentions = model.fuse(text, tokens[0], context)
    attention = attentions[0].detach()

    layer = model.fusion_layers[0]
    original = layer.cross_attention.attend

    def score_with(changed):
        def attend(x, ctx):
            value = layer.cross_attention.value(ctx)
            value = value.unflatten(-1, (layer.cross_attention.heads, -1)).transpose(-2, -3)
            result = layer.cross_attention.output((changed @ value).transpose(-2, -3).flatten(-2))
            return result, changed

        layer.cross_attention.attend = attend
        try:
            with torch.no_grad():
                return float(model.matching_score(model.fuse(text, tokens[0], context)[0][-1]))
        finally:
            layer.cross_attention.attend = original

    assert score_with(attention) == pytest.approx(float(score), rel=1e-6)
    step, token, patch = 1e-4, 3, 5
    expected = 0.0
    for head in range(attention.shape[1]):
        nudged = attention.clone()
        nudged[0, head, token, patch] += step
        gradient = (score_with(nudged) - score_with(attention)) / step
        expected += float(attention[0, head, token, patch]) * max(gradient, 0) / attention.shape[1]
    assert float(phi[0, 0, token].flatten()[patch]) == pytest.approx(expected, rel=1e-3, abs=1e-9)


def test_batched_captions_equal_single_ones():
    model, tokenizer = small_albef()
    images = random_images(2)
    tokens = tokenizer.encode(["a red cup", "two dogs", "a hat", "a dog and a cup"]).view(2, 2, -1)
    phi, score = token_activation(model, images, tokens, 1)
    assert phi.shape == (2, 2, tokens.shape[2], 4, 4)
    for image in range(2):
        for caption in range(2):
            one = tokens[image : image + 1, caption : caption + 1]
            single, single_score = token_activation(model, images[image : image + 1], one, 1)
            torch.testing.assert_close(phi[image, caption], single[0, 0], rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(
                score[image, caption], single_score[0, 0], rtol=1e-4, atol=1e-5
            )


def test_last_fusion_layer_has_no_gradient_at_words():
    model, tokenizer = small_albef()
    phi, _ = token_activation(model, random_images(1), tokenizer.encode(["a red cup"])[None], 2)
    assert phi[0, 0, 1:].abs().max() == 0
    assert phi[0, 0, 0].max() > 0


def test_constant_map_becomes_zero_not_nan():
    maps = torch.stack([torch.zeros(2, 2), torch.tensor([[0.0, 1.0], [3.0, 4.0]])])
    found = normalise_maps(maps)
    assert found[0].abs().max() == 0
    torch.testing.assert_close(found[1], torch.tensor([[0.0, 0.25], [0.75, 1.0]]))


@pytest.mark.parametrize("scope", ["object", "image"])
def test_rounds_unite_and_keep_the_first(scope):
    model, tokenizer = small_albef()
    targets, _, _ = targets_of([["a dog and a cup"], ["a dog"]], tokenizer)
    images = random_images(2)
    none, _ = iterate_masking(model, images, targets, activation_params(rounds=0))
    maps, scores = iterate_masking(model, images, targets, activation_params(mask_scope=scope))
    assert maps.shape == (3, 3, 4, 4)
    assert scores.shape == (3, 3)
    torch.testing.assert_close(maps[:, 0], none[:, 0])
    assert maps.isfinite().all()
    assert maps.amin() >= 0
    assert maps.amax() <= 1
    assert not torch.equal(maps[:, 0], maps[:, 2])


def test_scope_differs_only_where_an_image_has_several_objects():
    model, tokenizer = small_albef()
    targets, _, _ = targets_of([["a dog and a cup"], ["a dog"]], tokenizer)
    images = random_images(2)
    own, _ = iterate_masking(model, images, targets, activation_params())
    shared, _ = iterate_masking(model, images, targets, activation_params(mask_scope="image"))
    torch.testing.assert_close(own[2], shared[2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(own[:2, 2], shared[:2, 2])


def test_max_union_keeps_the_strongest_place():
    model, tokenizer = small_albef()
    targets, _, _ = targets_of([["a dog"]], tokenizer)
    maps, _ = iterate_masking(model, random_images(1), targets, activation_params(union="max"))
    strongest = maps[0, 0].flatten().argmax()
    assert maps[0, :, :].flatten(1)[:, strongest].tolist() == [1.0, 1.0, 1.0]


def test_what_later_rounds_find_on_hidden_pixels_does_not_count():
    model, tokenizer = small_albef()
    targets, _, _ = targets_of([["a dog"]], tokenizer)
    # nearly all of the image gets hidden
    settings = activation_params(rounds=1, mask_threshold=0.01)
    maps, _ = iterate_masking(model, random_images(1), targets, settings)
    torch.testing.assert_close(maps[0, 1], maps[0, 0], rtol=0, atol=0.2)


def test_reach_keeps_later_rounds_near_the_first_finding():
    model, tokenizer = small_albef()
    targets, _, _ = targets_of([["a dog"]], tokenizer)
    images = random_images(1, 64)
    far, _ = iterate_masking(model, images, targets, activation_params())
    near, _ = iterate_masking(model, images, targets, activation_params(reach=0.5))
    assert torch.equal(far[0, 0], near[0, 0])
    peak = (far[0, 0] == 1).nonzero()[0]
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    distance = (rows - peak[0]).abs().maximum((columns - peak[1]).abs())
    added_far = (far[0, 2] - far[0, 0]).clamp(min=0)[distance > 3].sum()
    added_near = (near[0, 2] - near[0, 0]).clamp(min=0)[distance > 3].sum()
    assert added_near < added_far
