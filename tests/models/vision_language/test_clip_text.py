"""CLIP's text tower through transformers, from a folder in hub format; any names become vectors."""

import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from stages.models.vision_language.name_embedding import load_name_embedder
from stages.models.vision_language.params import NameEmbeddingParams

TEMPLATES = ["a {}", "a photo of the {}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Save a tiny CLIP text tower with a tokeniser of single letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    path = tmp_path_factory.mktemp("clip")
    CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[]).save_pretrained(path)
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        projection_dim=8,
        bos_token_id=len(tokens) - 2,
        eos_token_id=len(tokens) - 1,
        pad_token_id=len(tokens) - 1,
    )
    torch.manual_seed(0)
    model = CLIPTextModelWithProjection(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.2
    model.save_pretrained(path)
    return path


def params(folder: Path, normalise: bool = True) -> NameEmbeddingParams:
    values = {
        "encoder": "clip",
        "clip": {"folder": str(folder)},
        "pooling": "name_tokens",
        "all_forms": False,
        "normalise": normalise,
        "templates": TEMPLATES,
    }
    return NameEmbeddingParams.model_validate(values)


@pytest.mark.parametrize("normalise", [True, False])
def test_vectors_are_means_of_projected_texts(folder, normalise):
    embedder = load_name_embedder(params(folder, normalise), Path("no/vlm"))
    model = CLIPTextModelWithProjection.from_pretrained(folder).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    found = embedder.embed_names(["Hot dog", "cat"])
    assert found.shape == (2, 8)
    for row, name in zip(found, ["hot dog", "cat"], strict=True):
        texts = [template.format(name) for template in TEMPLATES]
        vectors = torch.cat(  # one at a time: no padding
            [model(**tokenizer([text], return_tensors="pt")).text_embeds for text in texts]
        ).detach()
        unit = torch.nn.functional.normalize(vectors, dim=-1).mean(0)
        expected = unit / unit.norm() if normalise else vectors.mean(0)
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)
    assert float(torch.cosine_similarity(*found, dim=0)) < 0.99
    assert embedder.knows("zebra")


def test_a_name_does_not_depend_on_the_others(folder):
    embedder = load_name_embedder(params(folder), Path("no/vlm"))
    alone, together = embedder.embed_names(["cat"]), embedder.embed_names(["a long name", "cat"])
    assert torch.equal(alone[0], together[1])
    assert embedder.embed_names(["x" * 90]).isfinite().all()  # cut, not refused


def test_no_clip_here_is_an_error_that_says_how_to_get_it(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"vocabulary\.clip\.folder: 'no/clip'.*hf download"
    ):
        load_name_embedder(params(Path("no/clip")), Path("no/vlm"))
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load_name_embedder(params(tmp_path), Path("no/vlm"))


def test_tokeniser_of_another_model_is_an_error(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    del content["model"]["vocab"]["a"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"clip\.folder: the tokeniser in .* has 53 tokens, the .* 54"
    ):
        load_name_embedder(params(tmp_path), Path("no/vlm"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"vocab\.json and merges\.txt"):
        load_name_embedder(params(tmp_path), Path("no/vlm"))


def test_missing_weight_is_an_error_that_names_it(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"missing weights \['text_projection\.weight'\]"):
        load_name_embedder(params(tmp_path), Path("no/vlm"))
