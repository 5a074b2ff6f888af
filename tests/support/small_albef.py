"""A tiny ALBEF with random weights, for the tests of the stages that use one."""

import torch

from stages.models.vision_language.small_albef import SmallAlbef, SmallAlbefConfig
from stages.models.vision_language.tokenizer import CaptionTokenizer, build_vocabulary

CAPTIONS = (
    "a red cup and a hot dog near the wall",
    "two cups and a dog",
    "a photo of a dog in the park",
    "some hats , a hat and a cup",
)


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
