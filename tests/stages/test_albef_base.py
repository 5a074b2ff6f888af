"""Full-size ALBEF: the official implementation's numbers, and its checkpoint key by key."""

import json
from pathlib import Path

import pytest
import torch

from stages.activation.gradcam import token_activation
from stages.models.albef_base import AlbefBase
from stages.vlm.official import albef_from_official
from tests.golden import official_albef

GOLDEN = Path(__file__).parents[1] / "golden/albef.json"
BLOCK = 2  # of the fusion layers: official block 8, less the six that see no picture
TOLERANCE = 1e-5


def difference(found: torch.Tensor, expected: list) -> float:
    expected = torch.tensor(expected, dtype=torch.float64)
    assert found.shape == expected.shape
    return float((found.double() - expected).abs().max())


def compare(
    model: AlbefBase, golden: dict, sizes: official_albef.Sizes
) -> dict[str, tuple[float, float]]:
    """Return, per kind of number, its largest difference from the official and its largest size."""
    pictures, tokens = official_albef.inputs(sizes, *golden["inputs"])
    flat = tokens.flatten(0, 1)
    context = model.fusion_context(model.encode_image(pictures))
    text = model.fusion_text(flat).requires_grad_()
    states, attentions = model.fuse(text, flat, context)
    score = model.matching_score(states[-1])
    (gradient,) = torch.autograd.grad(score.sum(), attentions[BLOCK])
    phi, again = token_activation(model, pictures, tokens, BLOCK)
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
