"""A WSPN so small that a training takes seconds, and what one is trained with."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stages.common.formats import images
from stages.common.formats.tables import boxes_table
from stages.common.runtime.storage import write_table
from stages.models.proposals.imagenet import ImagenetWspn, ImagenetWspnConfig
from stages.models.proposals.language import LanguageWspn, LanguageWspnConfig
from stages.models.vision_language.small_albef import SmallAlbef, SmallAlbefConfig
from stages.models.vision_language.tokenizer import SPECIAL, CaptionTokenizer
from stages.wspn.params import SeedParams
from tests.support.boxes import random_boxes
from tests.support.images import noise_image

SEED_PARAMS = SeedParams(
    select="mist",
    top_fraction=0.5,
    max_iou=0.2,
    min_relative_score=0.0,
    neighbour_iou=0.3,
    power=0.25,
)
LANGUAGE_WSPN = LanguageWspnConfig(
    category_ids=[3, 7],
    image_side=64,
    stem_width=4,
    width=8,
    residual_blocks=0,
    num_words=2,
    class_hidden=8,
    object_hidden=8,
    dropout=0.0,
)
# Of one with a ResNet-50 for its backbone.
WSPN_SECTION = """
wspn:
  image_labels: captions
  max_images: 100
  proposals_per_image: 4
  model:
    backbone:
      kind: resnet50
      weights: null
      sha256: null
      frozen_stages: 4
      regions_at_once: 3
    image_side: 64
    class_hidden: 8
    object_hidden: 8
    dropout: 0.5
  classify:
    epochs: 1
    batch_size: 2
    proposals_per_visit: 8
    learning_rate: 0.1
    weight_decay: 0.0
  seeds:
    select: mist
    top_fraction: 1.0
    max_iou: 0.2
    min_relative_score: 0.0
    neighbour_iou: 1.0
    power: 1.0
  localise:
    quality: overlap
    quality_min_iou: 0.1
    regression_min_iou: 0.5
    regression_weight: 2.0
    epochs: 1
    batch_size: 8
    learning_rate: 0.1
    weight_decay: 0.0
  end_to_end:
    steps: 4
    batch_size: 2
    learning_rate: 0.00001
    milestones: [2, 3]
    warmup_steps: 2
    momentum: 0.9
    weight_decay: 0.0001
    precision: fp32
    views: {shorter_sides: [48, 64], longer_side: 96, flip: true}
    image_weight: 0.5
    refinement_weights: [3.0, 1.0]
    quality_weight: 1.0
"""


def tiny_wspn() -> LanguageWspn:
    torch.manual_seed(0)
    sizes = dict(vocabulary_size=8, max_tokens=8, max_patches_side=8, heads=2, projection=8)
    layers = dict(image_layers=0, text_layers=0, fusion_layers=1)
    vlm = SmallAlbef(
        SmallAlbefConfig(width=8, stem_width=4, residual_blocks=0, **sizes, **layers)
    ).eval()
    model = LanguageWspn(LANGUAGE_WSPN).eval()
    model.take_language(vlm, CaptionTokenizer([*SPECIAL, "a", "bird", "lamp"], 8))
    return model


def write_wspn_shards(
    folder: Path, monkeypatch: pytest.MonkeyPatch, counts: tuple[int, ...] = (10, 5)
) -> tuple[list[Path], list[Path]]:
    """Write shards of so many images, in short row groups, and nine proposals of each."""
    monkeypatch.setattr(images, "ROW_GROUP", 2)
    shards, tables, ids = [], [], iter(range(1, 99))
    for shard, count in enumerate(counts):
        own = [next(ids) for _ in range(count)]
        shards.append(folder / f"data/download/images/train/{shard}.parquet")
        images.write_images(shards[-1], [noise_image(k) for k in own])
        tables.append(folder / f"data/proposals/{shard}.parquet")
        boxes = np.concatenate([random_boxes(k, 9) for k in own])
        # row groups that begin amid an image's boxes
        write_table(tables[-1], boxes_table(np.repeat(own, 9), boxes), row_group_size=13)
    return shards, tables


def imagenet_wspn(regions_at_once: int = 4) -> ImagenetWspn:
    """Return a ResNet-50 with random weights that tells regions apart."""
    torch.manual_seed(0)
    model = ImagenetWspn(ImagenetWspnConfig("resnet50", [3, 7], 2, 0.5, regions_at_once)).eval()
    with torch.no_grad():
        for block in [*model.trunk.layer1, *model.trunk.layer2, *model.trunk.layer3]:
            block.bn3.weight.fill_(0.2)  # frozen norms that have not been fitted let features grow
        for head in (model.class_part, *model.refinement_parts, model.quality_part):
            head.weight.mul_(30)
    return model
