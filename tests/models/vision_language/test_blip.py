"""BLIP through transformers, taken from a folder in hub format and asked through our interface."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval

from stages.activation.gradcam import token_activation
from stages.models.vision_language.base import load_vlm
from stages.models.vision_language.name_embedding import NameEmbedder, VlmTextEncoder
from stages.models.vision_language.tokenizer import SPECIAL, CaptionTokenizer
from stages.vlm.params import PretrainedParams
from stages.vlm.pretrained import convert_blip

WORDS = (*SPECIAL, "a", "red", "cup", "hot", "dog", "##s", "and", "the", "##cup", "cafe", "-", ",")
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Save a tiny BLIP with lively random weights, as a folder of the hub looks."""
    config = BlipConfig(
        text_config=SIZES
        | {"num_hidden_layers": 3, "vocab_size": 20, "encoder_hidden_size": 16}
        | {"max_position_embeddings": 16},
        vision_config=SIZES | {"num_hidden_layers": 2, "image_size": 32, "patch_size": 8},
        image_text_hidden_size=8,
    )
    network = BlipForImageTextRetrieval(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.2
    path = tmp_path_factory.mktemp("blip")
    network.save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return path


def pretrained(folder: Path, **changes) -> PretrainedParams:
    values = {"checkpoint": str(folder), "sha256": None, "vocabulary": str(folder)}
    return PretrainedParams.model_validate(values | {"max_tokens": 12} | changes)


@pytest.fixture(scope="module")
def converted(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("converted") / "model.safetensors"
    facts = convert_blip(pretrained(folder), path)
    assert facts["words"] == len(WORDS)
    return load_vlm(path)


@pytest.fixture(scope="module")
def network(folder):
    return BlipForImageTextRetrieval.from_pretrained(folder, attn_implementation="eager").eval()


def test_bytes_do_not_tell_where_the_weights_were(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere")
    convert_blip(pretrained(folder), tmp_path / "here.safetensors")
    convert_blip(pretrained(tmp_path / "elsewhere"), tmp_path / "there.safetensors")
    here, there = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("here", "there"))
    assert here == there


@pytest.mark.parametrize("side", [32, 48])  # that of the position table, and interpolated
def test_scores_maps_and_gradients_are_those_of_transformers(converted, network, side):
    model, tokenizer = converted
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    captions = ["a red cup", "the dogs", "a hot dog and a cup", "red"]
    tokens = tokenizer.encode(captions).view(2, 2, -1)
    phi, scores = token_activation(model, images, tokens, 1)
    assert phi.shape == (2, 2, tokens.shape[2], side // 8, side // 8)
    for image in range(2):
        for caption in range(2):
            row = tokens[image, caption][None]
            keep = (row != 0).long()
            seen = network.vision_model(images[image][None], interpolate_pos_encoding=True)
            output = network.text_encoder(
                row,
                attention_mask=keep,
                encoder_hidden_states=seen.last_hidden_state,
                output_attentions=True,
            )
            score = network.itm_head(output.last_hidden_state[:, 0])[0, 1]
            torch.testing.assert_close(scores[image, caption], score.detach(), rtol=0, atol=1e-5)
            attention = output.cross_attentions[1]
            (gradient,) = torch.autograd.grad(score, attention)
            expected = (attention * gradient.clamp(min=0)).mean((0, 1))[:, 1:].detach()
            assert expected.max() > 1e-4
            torch.testing.assert_close(
                phi[image, caption].flatten(1) * keep.T, expected * keep.T, rtol=1e-4, atol=1e-7
            )


def test_whole_forward_of_transformers_gives_the_score(converted, network):
    model, tokenizer = converted
    image, tokens = torch.ones(1, 3, 32, 32), tokenizer.encode(["a red cup"])
    states, _ = model.fuse(
        model.fusion_text(tokens), tokens, model.fusion_context(model.encode_image(image))
    )
    expected = network(tokens, image).itm_score[:, 1]
    torch.testing.assert_close(model.matching_score(states[-1]), expected, rtol=0, atol=1e-5)


def test_names_are_embedded_without_an_image(converted, network):
    model, tokenizer = converted
    embedder = NameEmbedder(VlmTextEncoder(model, tokenizer, "class_token"), ["a {}"], True)
    tokens = tokenizer.encode(["a cup"])
    state = network.text_encoder(tokens).last_hidden_state[:, 0]
    expected = torch.nn.functional.normalize(network.text_proj(state), dim=-1)
    torch.testing.assert_close(embedder.embed_names(["Cup"]), expected.detach())


def test_missing_caption_gives_no_nan(converted):
    model, tokenizer = converted
    tokens = tokenizer.encode(["a red cup"])[:, None].repeat(1, 2, 1)
    tokens[:, 1] = 0
    phi, scores = token_activation(model, torch.ones(1, 3, 32, 32), tokens, 0)
    assert phi.isfinite().all()
    assert scores.isfinite().all()


def test_tokens_are_those_of_bert(tmp_path):
    words = ("[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS[5:])
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    theirs = BertTokenizer.from_pretrained(tmp_path)
    captions = ["A RED cup,  and-a hot dog", "café cupcup dogs", "the zebra \t redcup", ""]
    expected = theirs(captions, padding=True, truncation=True, max_length=9)["input_ids"]
    assert CaptionTokenizer(words, 9).encode(captions).tolist() == expected


def test_dropped_characters_do_not_shift_the_places_of_words():
    tokenizer = CaptionTokenizer(WORDS, 12, ignored='.,"')
    caption = 'a "hot", dog'
    tokens = [tokenizer.words[i] for i in tokenizer.encode([caption])[0].tolist()]
    assert tokens == ["[CLS]", "a", "hot", "dog", "[SEP]"]
    start = caption.index("hot")
    assert tokenizer.tokens_at(caption, start, start + 3) == [2]
    start = caption.index("dog")
    assert tokenizer.tokens_at(caption, start, start + 3) == [3]


def test_a_possessive_is_a_mention_and_a_name_that_is_cut_in_two_is_none():
    tokenizer = CaptionTokenizer((*WORDS, "dogs"), 4, ignored="'")
    caption = "dog's hot dog"
    tokens = [tokenizer.words[i] for i in tokenizer.encode([caption])[0].tolist()]
    assert tokens == ["[CLS]", "dogs", "hot", "[SEP]"]
    assert tokenizer.tokens_at(caption, 0, 3) == [1]
    assert tokenizer.tokens_at(caption, 6, 13) == []


def test_what_the_cache_has_not_is_an_error_that_says_how_to_get_it(folder, tmp_path, monkeypatch):
    output = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match=r"vlm\.pretrained\.checkpoint: 'x/y@12'.*hf down"):
        convert_blip(pretrained(folder, checkpoint="x/y@12"), output)
    with pytest.raises(FileNotFoundError, match=r"vlm\.pretrained\.vocabulary: 'x/words'"):
        convert_blip(pretrained(folder, vocabulary="x/words"), output)
    with pytest.raises(FileNotFoundError, match=r"folder .* has no config\.json"):
        convert_blip(pretrained(folder, checkpoint=str(tmp_path)), output)
    with pytest.raises(ValueError, match=r"vlm\.pretrained\.checkpoint: is null"):
        convert_blip(pretrained(folder, checkpoint=None), output)
    assert not output.exists()


def test_model_in_the_hubs_cache_is_found_by_its_name(tmp_path, repository):
    commit, model = "0" * 40, tmp_path / "hub/models--x--y"
    for path, text in ((f"snapshots/{commit}/config.json", "{}"), ("refs/main", commit)):
        (model / path).parent.mkdir(parents=True)
        (model / path).write_text(text)
    code = "from stages.common.runtime.hub import find_hub_file as find\n"
    for reference in ("x/y", f"x/y@{commit}"):
        code += f"print(find('{reference}', 'config.json', 'a.key'))\n"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HOME": str(tmp_path), "PYTHONPATH": str(repository)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert found.split() == [str(model / f"snapshots/{commit}/config.json")] * 2


def test_keys_and_digest_are_checked(folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = load_file(broken / "model.safetensors")
    weights["itm_tail.bias"] = weights.pop("itm_head.bias")
    weights["text_encoder.embeddings.position_ids"] = torch.arange(16)[None]  # of older files
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"missing weights: itm_head\.bias; un.*: itm_tail\.bias$"):
        convert_blip(pretrained(broken), tmp_path / "model.safetensors")
    weights["itm_head.bias"] = weights.pop("itm_tail.bias")[:1]
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="cannot be loaded as a BLIP"):
        convert_blip(pretrained(broken), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"its SHA-256 is [0-9a-f]{64}, .*another checkpoint"):
        convert_blip(pretrained(folder, sha256="0" * 64), tmp_path / "model.safetensors")
