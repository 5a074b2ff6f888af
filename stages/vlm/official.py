"""Converts the official ALBEF.pth to our weights.

Every key is renamed or left out by a rule; any other key is an error. Sizes are read from the
shapes of the weights, except the numbers of layers and the width of an attention head.
Source of the names: salesforce/ALBEF, models/{vit,xbert,model_pretrain}.py.
"""

import re
from collections.abc import Mapping

import torch

from stages.models.backbones.weights import load_exactly
from stages.models.vision_language.albef import Albef, AlbefConfig

HEAD_WIDTH = 64  # of an attention head, in ViT-B and BERT-base alike
IMAGE_LAYERS, TEXT_LAYERS, FUSION_LAYERS = 12, 6, 6

# Keys that a matching score does not need → the name under which they are counted.
LEFT_OUT = {
    r"(visual_encoder|text_encoder|vision_proj|text_proj)_m\..+": "momentum_copies",
    r"(image|text)_queue|(queue|idx|ptr)_(queue|ptr)": "queues_of_negatives",
    r"text_encoder\.cls\..+": "masked_word_head",
    r"temp": "temperature",
    r"text_encoder\.(bert\.)?embeddings\.position_ids": "position_ids",
}

_BLOCK = r"visual_encoder\.blocks\.(\d+)\."
_BERT = r"text_encoder\.(?:bert\.)?"
_LAYER = _BERT + r"encoder\.layer\.(\d+)\."
RENAMED = {
    r"visual_encoder\.cls_token": "image_class",
    r"visual_encoder\.pos_embed": "image_position",
    r"visual_encoder\.patch_embed\.proj\.(.+)": r"patch_embedding.\1",
    _BLOCK + r"norm1\.(.+)": r"image_layers.\1.norm_attention.\2",
    _BLOCK + r"attn\.qkv\.(.+)": r"image_layers.\1.query_key_value.\2",
    _BLOCK + r"attn\.proj\.(.+)": r"image_layers.\1.output.\2",
    _BLOCK + r"norm2\.(.+)": r"image_layers.\1.norm_mlp.\2",
    _BLOCK + r"mlp\.fc1\.(.+)": r"image_layers.\1.mlp.0.\2",
    _BLOCK + r"mlp\.fc2\.(.+)": r"image_layers.\1.mlp.2.\2",
    r"visual_encoder\.norm\.(.+)": r"image_norm.\1",
    _BERT + r"embeddings\.word_embeddings\.(.+)": r"word_embedding.\1",
    _BERT + r"embeddings\.position_embeddings\.weight": "text_position",
    _BERT + r"embeddings\.token_type_embeddings\.weight": "text_segment",
    _BERT + r"embeddings\.LayerNorm\.(.+)": r"text_norm.\1",
    _LAYER + r"attention\.self\.(.+)": r"bert.\1.self_attention.\2",
    _LAYER + r"attention\.output\.dense\.(.+)": r"bert.\1.self_attention.output.\2",
    _LAYER + r"attention\.output\.LayerNorm\.(.+)": r"bert.\1.norm_self.\2",
    _LAYER + r"crossattention\.self\.(.+)": r"bert.\1.cross_attention.\2",
    _LAYER + r"crossattention\.output\.dense\.(.+)": r"bert.\1.cross_attention.output.\2",
    _LAYER + r"crossattention\.output\.LayerNorm\.(.+)": r"bert.\1.norm_cross.\2",
    _LAYER + r"intermediate\.dense\.(.+)": r"bert.\1.mlp.0.\2",
    _LAYER + r"output\.dense\.(.+)": r"bert.\1.mlp.2.\2",
    _LAYER + r"output\.LayerNorm\.(.+)": r"bert.\1.norm_mlp.\2",
    r"itm_head\.(.+)": r"matching_head.\1",
    r"vision_proj\.(.+)": r"image_projection.\1",
    r"text_proj\.(.+)": r"text_projection.\1",
}


def albef_from_official(
    state: Mapping[str, torch.Tensor], origin: object
) -> tuple[Albef, dict[str, int]]:
    """Return (model in evaluation mode, how many keys each rule left out).

    Args:
        state: the official state dict after pretraining, retrieval or grounding.
        origin: what error messages begin with.

    Raises:
        ValueError: weights are missing, unexpected or of another shape; all are listed.
    """
    weights, left_out = {}, dict.fromkeys(LEFT_OUT.values(), 0)
    for key, tensor in state.items():
        rule = next((why for rule, why in LEFT_OUT.items() if re.fullmatch(rule, key)), None)
        if rule is None:
            weights[_renamed(key)] = tensor.float()
        else:
            left_out[rule] += 1
    with torch.device("meta"):
        model = Albef(_config(weights, origin))
    load_exactly(model, weights, origin)
    return model.eval().requires_grad_(False), left_out


def _renamed(key: str) -> str:
    """Return our name for an official key, or the key itself if no rule renames it."""
    for pattern, replacement in RENAMED.items():
        if match := re.fullmatch(pattern, key):
            name = match.expand(replacement)
            return re.sub(r"^bert\.(\d+)", _side_of_fusion, name)
    return key


def _side_of_fusion(layer: re.Match) -> str:
    index = int(layer[1])
    if index < TEXT_LAYERS:
        return f"text_layers.{index}"
    return f"fusion_layers.{index - TEXT_LAYERS}"


def _config(weights: Mapping[str, torch.Tensor], origin: object) -> AlbefConfig:
    """Read the sizes from the shapes of the weights; raises ValueError if one is missing."""
    telling = (
        "word_embedding.weight",
        "text_position",
        "image_position",
        "patch_embedding.weight",
        "image_layers.0.mlp.0.weight",
        "image_projection.weight",
    )
    if missing := [name for name in telling if name not in weights]:
        raise ValueError(f"{origin}: missing weights: {', '.join(missing)}; is it an ALBEF?")
    words, positions, table, patches, hidden, projection = (weights[n].shape for n in telling)
    return AlbefConfig(
        vocabulary_size=words[0],
        text_positions=positions[0],
        patch_side=patches[-1],
        table_side=round((table[1] - 1) ** 0.5),
        width=patches[0],
        heads=patches[0] // HEAD_WIDTH,
        hidden=hidden[0],
        image_layers=IMAGE_LAYERS,
        text_layers=TEXT_LAYERS,
        fusion_layers=FUSION_LAYERS,
        projection=projection[0],
    )
