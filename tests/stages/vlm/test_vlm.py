"""Stage vlm: tokeniser, losses, words that can be seen, and training."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.common.runtime.curves import Curve
from stages.common.runtime.seeding import torch_generator
from stages.models.vision_language.small_albef import (
    SmallAlbef,
    SmallAlbefConfig,
    load_small_albef,
    save_small_albef,
)
from stages.models.vision_language.tokenizer import CaptionTokenizer, build_vocabulary
from stages.vlm import losses
from stages.vlm.pairs import PairSampler
from stages.vlm.params import VlmParams
from stages.vlm.train import train_vlm
from stages.vlm.words import VisibilityMeter, WordSwapper, substitution_weights
from tests.support.small_albef import CAPTIONS, VLM_PARAMS, small_albef


def coloured_pairs(count=64, size=32):
    """Images of one colour and captions that name it beside a word that the image lacks."""
    random = np.random.default_rng(0)
    colours = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}
    images, captions = [], []
    for _ in range(count):
        name = str(random.choice(list(colours)))
        noise = random.normal(0, 10, (size, size, 3))
        images.append(np.clip(np.array(colours[name]) + noise, 0, 255).astype(np.uint8))
        captions.append(f"a {name} wall at {random.choice(['night', 'noon'])}")
    return np.stack(images), captions


def train_small(seed=0):
    params = VlmParams.model_validate(VLM_PARAMS)
    images, captions = coloured_pairs()
    tokenizer = CaptionTokenizer(build_vocabulary(captions, 1), params.model.max_tokens)
    tokens = tokenizer.encode(captions)
    torch.manual_seed(seed)
    model = SmallAlbef(
        SmallAlbefConfig(vocabulary_size=len(tokenizer), **params.model.model_dump())
    )
    sampler = PairSampler(images, list(tokens[:, None]), params.batch_size, seed)
    curve = Curve(every=6)
    facts = train_vlm(
        model, tokenizer, sampler, tokens, params, torch_generator(seed, "vlm"), curve
    )
    return model, tokenizer, facts, curve


def test_vocabulary_splits_regular_plurals():
    words = build_vocabulary(CAPTIONS, 1)
    assert words[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert "cup" in words
    assert "cups" not in words
    assert "##s" in words
    tokenizer = CaptionTokenizer(words, 16)
    row = tokenizer.encode(["Two CUPS!"])[0].tolist()
    assert [tokenizer.words[i] for i in row] == ["[CLS]", "two", "cup", "##s", "[UNK]", "[SEP]"]


def test_long_caption_is_cut_and_its_tail_has_no_tokens():
    tokenizer = CaptionTokenizer(build_vocabulary(CAPTIONS, 1), 5)
    caption = "a red cup and a hot dog"
    assert tokenizer.encode([caption]).shape == (1, 5)
    assert tokenizer.tokens_at(caption, 20, 23) == []


def test_vocabulary_must_begin_with_special_tokens():
    with pytest.raises(ValueError, match="must begin with"):
        CaptionTokenizer(["a", "b"], 4)


def test_pooling_goes_from_mean_to_maximum():
    logits = torch.tensor([[[0.0], [2.0], [4.0]]])
    assert float(losses.pool_patches(logits, 0.0)) == pytest.approx(2.0)
    assert float(losses.pool_patches(logits, 50.0)) == pytest.approx(4.0)


def test_word_alignment_by_hand():
    scores = torch.tensor([[1.0, 0.0, 0.0]])
    present = torch.tensor([[True, False, False]])
    expected = np.log((np.e + 2) / np.e)
    assert float(losses.word_alignment(scores, present)) == pytest.approx(expected, rel=1e-5)


def test_matching_counts_true_pairs_twice_and_ignores_invalid():
    logits = torch.tensor([[[0.0, 2.0], [0.0, 2.0], [0.0, 9.0]]])
    matches = torch.tensor([[True, False, False]])
    valid = torch.tensor([[True, True, False]])
    good, bad = np.log(1 + np.exp(-2)), np.log(1 + np.exp(2))
    expected = (2 * good + bad) / 3
    assert float(losses.matching(logits, matches, valid)) == pytest.approx(expected, rel=1e-5)


def test_hard_negative_is_never_an_equal_caption():
    tokens = torch.tensor([[2, 5, 3], [2, 5, 3], [2, 6, 3]])
    similarity = torch.tensor([[9.0, 9.0, 0.0], [9.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    for seed in range(5):
        drawn = losses.hard_negatives(similarity, tokens, torch.Generator().manual_seed(seed))
        assert drawn[:2].tolist() == [2, 2]


def test_visible_word_has_separation():
    meter = VisibilityMeter(2)
    present = torch.tensor([[True, True], [False, True], [True, False], [False, False]])
    meter.add(torch.tensor([[2.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.0, 0.0]]), present)
    assert meter.separation().tolist() == pytest.approx([2.0, 0.0])


def test_nouns_replace_nouns():
    tokenizer = CaptionTokenizer(build_vocabulary(CAPTIONS, 1), 16)
    ids = torch.tensor([tokenizer.ids[word] for word in ("cup", "dog", "red", "hat")])
    weights = substitution_weights(tokenizer.encode(CAPTIONS), ids, len(tokenizer))
    cup, _, red, hat = range(4)
    assert weights[cup, hat] > weights[cup, red]
    assert weights.diagonal().sum() == 0


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.integers(2, 30))
def test_pairs_of_visible_words_weigh_what_all_pairs_do(seed, vocabulary):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocabulary, (40, 6), generator=generator)
    ids = torch.randperm(vocabulary, generator=generator)[: 1 + vocabulary // 2]
    followers = torch.zeros(vocabulary, vocabulary)  # of every word, the plain way
    for first, second in zip(tokens[:, :-1].flatten(), tokens[:, 1:].flatten(), strict=True):
        followers[first, second] += 1
    rows = torch.nn.functional.normalize(followers[ids].sqrt(), dim=1)
    expected = (rows @ rows.T).pow(4).fill_diagonal_(0)
    assert torch.equal(substitution_weights(tokens, ids, vocabulary), expected)


def test_memory_of_words_does_not_grow_with_the_square_of_the_vocabulary():
    vocabulary = 1_000_000  # the counts of all pairs would take 8 TB
    tokens = torch.tensor([[5, 7, 9], [6, 7, 8], [999_999, 3, 2]])
    weights = substitution_weights(tokens, torch.tensor([5, 6, 999_999]), vocabulary)
    assert weights.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_swap_changes_one_visible_word_to_an_absent_one():
    tokenizer = CaptionTokenizer(build_vocabulary(CAPTIONS, 1), 16)
    visible = torch.tensor([tokenizer.ids[word] for word in ("cup", "dog", "hat")])
    swapper = WordSwapper(visible, torch.ones(3, 3).fill_diagonal_(0), len(tokenizer))
    tokens = tokenizer.encode(["a cup and a dog", "a red wall"])
    swapped, done = swapper.swap(tokens, torch.Generator().manual_seed(0))
    assert done.tolist() == [True, False]
    changed = (swapped != tokens).nonzero()
    assert len(changed) == 1
    assert tokenizer.words[int(swapped[tuple(changed[0])])] == "hat"


def test_masking_spares_special_tokens():
    tokenizer = CaptionTokenizer(build_vocabulary(CAPTIONS, 1), 16)
    swapper = WordSwapper(torch.tensor([tokenizer.ids["cup"]]), torch.zeros(1, 1), len(tokenizer))
    tokens = tokenizer.encode(["a cup and a dog"])
    masked, hidden = swapper.mask(tokens, 1.0, 0.0, torch.Generator().manual_seed(0))
    assert hidden.nonzero().tolist() == [[0, 2]]
    assert tokenizer.words[int(masked[0, 2])] == "[MASK]"


def test_training_learns_what_images_show_and_is_reproducible():
    model, tokenizer, facts, curve = train_small()
    assert facts["visible_words"] >= 2
    assert np.isfinite(list(curve.last().values())).all()
    again, *_ = train_small()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    images, _ = coloured_pairs(3)
    from stages.common.formats.images import normalise_pixels

    words = torch.tensor([tokenizer.ids[name] for name in ("red", "green", "blue")])
    scores = model.word_patch_logits(model.encode_patches(normalise_pixels(images)), words).mean(1)
    colours = images.reshape(3, -1, 3).mean(1).argmax(1)
    assert scores.argmax(1).tolist() == colours.tolist()


def test_too_few_pairs_is_an_error():
    with pytest.raises(ValueError, match=r"fewer than vlm\.batch_size"):
        PairSampler(np.zeros((2, 8, 8, 3), np.uint8), [torch.zeros(1, 3)] * 2, 4, 0)


def test_saved_model_loads_to_the_same_outputs(tmp_path):
    model, tokenizer = small_albef()
    save_small_albef(tmp_path / "model.safetensors", model, tokenizer)
    loaded, words = load_small_albef(tmp_path / "model.safetensors")
    assert words.words == tokenizer.words
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded.encode_image(images), model.encode_image(images))


def test_image_larger_than_the_position_table_is_an_error():
    model, _ = small_albef()
    with pytest.raises(ValueError, match="max_patches_side"):
        model.encode_image(torch.zeros(1, 3, 128, 128))
