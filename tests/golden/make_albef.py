"""Run the official ALBEF on weights by rule and write its numbers; see README.md beside this file.

Run from the repository's root, in an environment of its own (README.md lists the versions):
    python -m tests.golden.make_albef CLONE_OF_SALESFORCE_ALBEF tests/golden/albef.json
With --full it is run at its official size, for a comparison that is not kept.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import torch
import transformers.file_utils
from torch import nn

from tests.golden.official_albef import FULL, HEAD_WIDTH, LAYERS, Sizes, inputs, weights

BLOCK = 8  # of BERT; the third with cross-attention
CASES = {  # image side, images, captions, tokens
    "native": (64, 2, 2, 8),
    "interpolated": (96, 1, 2, 8),
}
FULL_CASES = {"native": (256, 2, 2, 12), "interpolated": (384, 1, 2, 12)}


def build(sizes: Sizes, image_side: int) -> nn.ModuleDict:
    """Return the official image encoder, text encoder and matching head with weights by rule."""
    # Decorators for documentation only; their arguments differ from version to version.
    transformers.file_utils.add_code_sample_docstrings = lambda *_, **__: lambda function: function
    from models.vit import VisionTransformer, interpolate_pos_embed
    from models.xbert import BertConfig, BertModel

    heads = sizes.width // HEAD_WIDTH
    image = VisionTransformer(
        img_size=image_side,
        patch_size=16,
        embed_dim=sizes.width,
        depth=LAYERS,
        num_heads=heads,
        mlp_ratio=4,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    config = BertConfig(
        vocab_size=sizes.words,
        hidden_size=sizes.width,
        intermediate_size=4 * sizes.width,
        num_attention_heads=heads,
        num_hidden_layers=LAYERS,
        max_position_embeddings=sizes.text_positions,
    )
    config.fusion_layer, config.encoder_width = LAYERS // 2, sizes.width
    text = BertModel(config, add_pooling_layer=False)
    model = nn.ModuleDict({"visual_encoder": image, "text_encoder": text})
    model["itm_head"] = nn.Linear(sizes.width, 2)
    state = {k.replace("text_encoder.bert.", "text_encoder."): v for k, v in weights(sizes).items()}
    table = "visual_encoder.pos_embed"
    state[table] = interpolate_pos_embed(state[table], image)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert [key for key in missing if not key.endswith("position_ids")] == []
    assert {key.split(".")[0] for key in unexpected} == {"vision_proj", "text_proj"}
    return model.eval()


def run(model: nn.ModuleDict, images: torch.Tensor, tokens: torch.Tensor) -> dict[str, list]:
    """Return score, attention, gradient and GradCAM of every caption, one pair after another."""
    found = {"score": [], "attention": [], "gradient": [], "gradcam": []}
    cross = model["text_encoder"].encoder.layer[BLOCK].crossattention.self
    cross.save_attention = True
    for image, captions in zip(images, tokens, strict=True):
        for caption in captions:
            mask = (caption != 0).long()[None]
            states = model["visual_encoder"](image[None])
            output = model["text_encoder"](
                caption[None],
                attention_mask=mask,
                encoder_hidden_states=states,
                encoder_attention_mask=torch.ones(states.shape[:-1], dtype=torch.long),
                return_dict=True,
            )
            score = model["itm_head"](output.last_hidden_state[:, 0])[:, 1]
            model.zero_grad()
            score.sum().backward()
            attention, gradient = cross.get_attention_map(), cross.get_attn_gradients()
            rows = mask[:, None, :, None]
            cam = attention[..., 1:] * rows * (gradient[..., 1:].clamp(0) * rows)
            found["score"].append(float(score))
            found["attention"].append(attention[0].tolist())
            found["gradient"].append(gradient[0].tolist())
            found["gradcam"].append(cam[0].mean(0).tolist())
    return found


def main() -> None:
    """Write the numbers of all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("official", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(options.official))
    sizes, cases = (FULL, FULL_CASES) if options.full else (Sizes(), CASES)
    content = {
        name: {"inputs": list(case), **run(build(sizes, case[0]), *inputs(sizes, *case))}
        for name, case in cases.items()
    }
    text = json.dumps(content)
    # Eight digits tell any two neighbouring numbers of 32 bits apart well below 1e-5.
    rounded = json.loads(text, parse_float=lambda digits: float(f"{float(digits):.8g}"))
    options.output.write_text(json.dumps(rounded) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
