"""A tiny ALBEF with random weights, and params and inputs of the stages that use one."""

import torch

from stages.activation.params import ActivationParams
from stages.activation.targets import find_targets
from stages.common.formats.captions import MentionFinder
from stages.common.formats.categories import Category
from stages.models.vision_language.small_albef import SmallAlbef, SmallAlbefConfig
from stages.models.vision_language.tokenizer import CaptionTokenizer, build_vocabulary

CAPTIONS = (
    "a red cup and a hot dog near the wall",
    "two cups and a dog",
    "a photo of a dog in the park",
    "some hats , a hat and a cup",
)
CATEGORIES = [
    Category(1, "cup", "base", ("cup", "cups")),
    Category(2, "dog", "novel", ("dog", "dogs")),
    Category(3, "hot dog", "excluded", ("hot dog",)),
    Category(4, "red hat", "novel", ("red hat", "hats")),
]
VLM_PARAMS = {
    "source": "train",
    "pretrained": {"checkpoint": None, "sha256": None, "vocabulary": "vocab.txt", "max_tokens": 30},
    "image_size": 32,
    "batch_size": 8,
    "min_word_count": 1,
    "align": {"steps": 60, "learning_rate": 0.003},
    "fuse": {"steps": 6, "learning_rate": 0.001},
    "warmup_steps": 5,
    "weight_decay": 0.05,
    "pool_sharpness": 0.5,
    "context_drop": 0.5,
    "visible_threshold": 0.5,
    "swaps": 1,
    "mask_visible": 0.5,
    "mask_other": 0.1,
    "bfloat16": False,
    "weights": {
        "word_alignment": 1.0,
        "contrastive": 0.5,
        "matching": 1.0,
        "masked_words": 0.5,
        "replaced_words": 1.0,
    },
    "model": {
        "width": 32,
        "heads": 2,
        "stem_width": 8,
        "residual_blocks": 0,
        "image_layers": 1,
        "text_layers": 1,
        "fusion_layers": 2,
        "projection": 8,
        "max_patches_side": 8,
        "max_tokens": 8,
    },
}
ACTIVATION_PARAMS = {
    "image_size": 32,
    "fusion_layer": 0,
    "rounds": 2,
    "captions": "all",
    "forms": "all",
    "mask_scope": "object",
    "mask_threshold": 0.5,
    "union": "sum",
    "reach": 0.0,
    "weigh_visible": True,
    "batch_size": 2,
}


def small_albef(fusion_layers: int = 3) -> tuple[SmallAlbef, CaptionTokenizer]:
    """Return an untrained model in evaluation mode whose outputs are not degenerate."""
    words = build_vocabulary(CAPTIONS, 1)
    tokenizer = CaptionTokenizer(words, 16)
    torch.manual_seed(0)
    model = SmallAlbef(
        SmallAlbefConfig(
            vocabulary_size=len(words),
            max_tokens=16,
            max_patches_side=8,
            width=16,
            heads=2,
            stem_width=4,
            residual_blocks=1,
            image_layers=1,
            text_layers=1,
            fusion_layers=fusion_layers,
            projection=8,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape) * 0.1
    return model.eval(), tokenizer


def activation_params(**changes) -> ActivationParams:
    """Return the params of the stage `activation`."""
    return ActivationParams.model_validate(ACTIVATION_PARAMS | changes)


def random_images(count: int, size: int = 32) -> torch.Tensor:
    """Return images as the model takes them."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3))


def targets_of(captions: list[list[str]], tokenizer: CaptionTokenizer):
    """Return what the captions of each image name, as the stage `activation` finds it."""
    return find_targets(captions, MentionFinder(CATEGORIES), tokenizer)
