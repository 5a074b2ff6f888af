"""Full-size ALBEF: the official implementation's numbers, and its checkpoint key by key."""

import json
import sys
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from stages.activation.gradcam import token_activation
from stages.common.runtime.storage import read_json
from stages.models.backbones.weights import read_checkpoint
from stages.models.vision_language.albef import Albef
from stages.models.vision_language.base import load_vlm
from stages.models.vision_language.small_albef import load_small_albef
from stages.models.vision_language.tokenizer import SPECIAL
from stages.vlm.official import albef_from_official
from tests.golden import official_albef
from tests.support.run_module import run_module
from tests.support.small_albef import VLM_PARAMS

GOLDEN = Path(__file__).parents[2] / "golden/albef.json"
BLOCK = 2  # of the fusion layers: official block 8, less the six that see no image
TOLERANCE = 1e-5


def difference(found: torch.Tensor, expected: list) -> float:
    expected = torch.tensor(expected, dtype=torch.float64)
    assert found.shape == expected.shape
    return float((found.double() - expected).abs().max())


def compare(
    model: Albef, golden: dict, sizes: official_albef.Sizes
) -> dict[str, tuple[float, float]]:
    """Return, per kind of number, its largest difference from the official and its largest size."""
    images, tokens = official_albef.inputs(sizes, *golden["inputs"])
    flat = tokens.flatten(0, 1)
    context = model.fusion_context(model.encode_image(images))
    text = model.fusion_text(flat).requires_grad_()
    states, attentions = model.fuse(text, flat, context)
    score = model.matching_score(states[-1])
    (gradient,) = torch.autograd.grad(score.sum(), attentions[BLOCK])
    phi, again = token_activation(model, images, tokens, BLOCK)
    torch.testing.assert_close(again.flatten(), score)

    def by_caption(maps: torch.Tensor) -> torch.Tensor:  # (B, A, M*L, P) to (B*M, A, L, P)
        return maps.detach().unflatten(2, tokens.shape[1:]).transpose(1, 2).flatten(0, 1)

    real = (flat != 0)[..., None]  # officially, GradCAM is 0 at padding; here nobody asks for it
    found = {
        "score": score.detach(),
        "attention": by_caption(attentions[BLOCK]),
        "gradient": by_caption(gradient),
        "gradcam": phi.flatten(0, 1).flatten(2) * real,
    }
    return {
        kind: (
            difference(values, golden[kind]),
            float(torch.tensor(golden[kind]).abs().max()),
        )
        for kind, values in found.items()
    }


@pytest.mark.parametrize("case", ["native", "interpolated"])
def test_numbers_are_the_official_implementations(case):
    sizes = official_albef.Sizes()
    model, _ = albef_from_official(official_albef.weights(sizes), "weights by rule")
    for kind, (apart, size) in compare(model, json.loads(GOLDEN.read_text())[case], sizes).items():
        assert size > 1e-3, kind
        assert apart < TOLERANCE * size, kind


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return official_albef.weights(official_albef.Sizes())


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """Give a folder with a small checkpoint, a vocabulary and the params to read them."""
    sizes = official_albef.Sizes()
    official_albef.write_checkpoint(tmp_path / "ALBEF.pth", sizes)
    fill = [f"[unused{k}]" for k in range(sizes.words - len(SPECIAL) - 3)]
    words = [*SPECIAL, *fill, "a", "red", "cup"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    source = {"checkpoint": "ALBEF.pth", "sha256": None, "vocabulary": "vocab.txt"}
    pretrained = source | {"max_tokens": 12}
    content = {"seed": 0, "vlm": VLM_PARAMS | {"source": "albef", "pretrained": pretrained}}
    YAML().dump(content, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return content


def run_stage(content: dict, **changes) -> None:
    content["vlm"]["pretrained"] |= changes
    YAML().dump(content, Path("params.yaml"))
    run_module("stages.vlm")


def test_stage_takes_the_official_checkpoint_into_data(experiment, weights):
    run_stage(experiment)
    path = Path("data/vlm/model.safetensors")
    first = path.read_bytes()
    run_stage(experiment)
    assert path.read_bytes() == first
    assert Path("data/vlm/curve.csv").read_text() == "step\n"
    metrics = read_json(Path("data/vlm/metrics.json"))
    assert metrics["left_out"]["momentum_copies"] == 3
    assert metrics["parameters"] == sum(tensor.numel() for tensor in weights.values())

    model, tokenizer = load_vlm(path)
    again, _ = albef_from_official(weights, "weights by rule")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    tokens = tokenizer.encode(["A red cup."])
    assert [tokenizer.words[i] for i in tokens[0].tolist()] == ["[CLS]", "a", "red", "cup", "[SEP]"]
    phi, _ = token_activation(model, torch.ones(1, 3, 64, 64), tokens[None], BLOCK)
    assert phi.shape == (1, 1, 5, 4, 4)
    with pytest.raises(ValueError, match=r"holds albef, .*set vlm\.source to train"):
        load_small_albef(path)


def test_backward_stops_at_the_chosen_map_and_captions_share_the_image(weights, monkeypatch):
    model, _ = albef_from_official(weights, "weights by rule")
    fuse, encode_image = model.fuse, model.encode_image
    reached, seen = [], []

    def watched(*inputs):
        states, attentions = fuse(*inputs)
        for layer, attention in enumerate(attentions):
            attention.register_hook(lambda _, layer=layer: reached.append(layer))
        return states, attentions

    monkeypatch.setattr(model, "fuse", watched)
    monkeypatch.setattr(model, "encode_image", lambda x: seen.append(len(x)) or encode_image(x))
    token_activation(model, *official_albef.inputs(official_albef.Sizes(), 64, 2, 3, 8), BLOCK)
    assert reached == [5, 4, 3, 2]
    assert seen == [2]


def test_stage_says_what_is_wrong_with_its_files(experiment):
    with pytest.raises(FileNotFoundError, match=r"vlm\.pretrained\.checkpoint: .*no\.pth is not"):
        run_stage(experiment, checkpoint="no.pth")
    with pytest.raises(ValueError, match=r"SHA-256 is [0-9a-f]{64}, params.yaml: .* says 0000"):
        run_stage(experiment, checkpoint="ALBEF.pth", sha256="0" * 64)
    Path("few.txt").write_text("\n".join(SPECIAL))
    with pytest.raises(ValueError, match=r"vocabulary: 5 words, but ALBEF\.pth has .* of 50"):
        run_stage(experiment, sha256=None, vocabulary="few.txt")
    assert not Path("data/vlm/model.safetensors").exists()


def test_keys_that_are_not_accounted_for_are_listed(weights):
    lacking = dict(weights)
    del lacking["visual_encoder.blocks.3.norm1.bias"], lacking["itm_head.weight"]
    with pytest.raises(ValueError) as caught:
        albef_from_official(lacking, "ALBEF.pth")
    assert str(caught.value) == (
        "ALBEF.pth: missing weights: image_layers.3.norm_attention.bias, matching_head.weight"
    )
    more = weights | {"text_encoder.bert.pooler.dense.bias": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"unexpected weights: text_encoder\.bert\.pooler"):
        albef_from_official(more, "ALBEF.pth")
    odd = weights | {"vision_proj.bias": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"image_projection\.bias \(3,\) instead of \(16,\)"):
        albef_from_official(odd, "ALBEF.pth")
    with pytest.raises(ValueError, match=r"missing weights: word_embedding.*is it an ALBEF\?"):
        albef_from_official({"layer.weight": torch.zeros(2)}, "ALBEF.pth")


def test_grounding_checkpoint_has_no_bert_in_its_names(weights):
    plain = {name.replace(".bert.", "."): tensor for name, tensor in weights.items()}
    found, expected = (albef_from_official(w, "")[0].state_dict() for w in (plain, weights))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class Malicious:
    def __reduce__(self):
        return sys.exit, (3,)


def test_checkpoint_that_is_no_plain_weights_is_refused(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": {"x": torch.zeros(2)}, "config": Malicious()}, path)
    with pytest.raises(ValueError, match="cannot be read as torch weights"):
        read_checkpoint(path)
    path.write_bytes(b"PK\x03\x04 half of a download")
    with pytest.raises(ValueError, match=r"model\.pth: cannot be read as torch weights"):
        read_checkpoint(path)
    torch.save([torch.zeros(2)], path)
    with pytest.raises(ValueError, match="expected a mapping of names to tensors"):
        read_checkpoint(path)
    torch.save({"x": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    assert read_checkpoint(path)["x"].tolist() == [1, 1]  # torch 1.5 and older wrote such files
