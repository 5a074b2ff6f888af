"""Building and training the proposal network on either kind of backbone.

On the small vision-language model two parts are trained, one after the other, on features that are
computed once. An ImageNet backbone is trained end to end with all heads.

Shape legend: C labelled classes.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from stages.common.runtime.checkpoints import Checkpoint
from stages.common.runtime.curves import Curve
from stages.models.backbones.imagenet import freeze_stages
from stages.models.proposals.imagenet import ImagenetWspn, ImagenetWspnConfig
from stages.models.proposals.language import LanguageWspn, LanguageWspnConfig
from stages.models.vision_language.small_albef import SmallAlbef
from stages.models.vision_language.tokenizer import CaptionTokenizer
from stages.wspn.classify import train_class_part
from stages.wspn.end_to_end import ViewStream, train_end_to_end
from stages.wspn.examples import ImageExample
from stages.wspn.localise import find_seeds, object_targets, train_object_part
from stages.wspn.params import ModelParams, WspnParams
from stages.wspn.refine import image_losses
from stages.wspn.stream import ImageStream


def build_on_language(
    vlm: SmallAlbef, tokenizer: CaptionTokenizer, category_ids: list[int], params: ModelParams
) -> LanguageWspn:
    """Return an untrained network on the trunk and the words of the vision-language model.

    Args:
        vlm: its trunk gives the features.
        tokenizer: its content words are those that a proposal is matched with.
        category_ids: of the C labelled classes.
        params: section `wspn.model`.
    """
    config = LanguageWspnConfig(
        category_ids=category_ids,
        stem_width=vlm.config.stem_width,
        width=vlm.config.width,
        residual_blocks=vlm.config.residual_blocks,
        num_words=len(tokenizer.content_words()),
        **params.model_dump(exclude={"backbone"}),
    )
    model = LanguageWspn(config).eval()
    model.take_language(vlm, tokenizer)
    return model


def train_on_language(
    model: LanguageWspn,
    examples: Sequence[ImageExample],
    params: WspnParams,
    seed: int,
    curve: Curve,
) -> dict[str, int]:
    """Train the class part, then the object part, in place; return counts for the metrics."""
    train_class_part(model, examples, params.classify, seed, curve)
    seeds = [find_seeds(model, example, params.seeds) for example in examples]
    targets = object_targets(examples, seeds, params.localise)
    done = params.classify.epochs * -(-len(examples) // params.classify.batch_size)
    train_object_part(model, targets, params.localise, seed, curve, done)
    return {
        "images": len(examples),
        "images_with_label": sum(bool(example.labels.any()) for example in examples),
        "seeds": sum(map(len, seeds)),
        "proposals": sum(len(example.boxes_xyxy) for example in examples),
        "proposals_with_quality": int(targets.has_quality.sum()),
        "proposals_with_regression": int(targets.has_offsets.sum()),
    }


def build_on_imagenet(category_ids: list[int], params: WspnParams) -> ImagenetWspn:
    """Return a network with random weights on an ImageNet backbone, for C labelled classes."""
    backbone = params.model.backbone
    assert backbone.kind != "vlm"
    config = ImagenetWspnConfig(
        backbone=backbone.kind,
        category_ids=category_ids,
        refinements=len(params.end_to_end.refinement_weights),
        dropout=params.model.dropout,
        regions_at_once=backbone.regions_at_once,
    )
    return ImagenetWspn(config)


def train_on_imagenet(
    model: ImagenetWspn,
    images: ImageStream,
    labels: Mapping[int, np.ndarray],
    params: WspnParams,
    seed: int,
    curve: Curve,
    checkpoint: Checkpoint,
) -> dict[str, int]:
    """Train the network in place, but for the frozen stages; return counts for the metrics.

    Args:
        model: has the backbone's initial weights.
        images: the training images with their proposals.
        labels: (C,) per image; an image that is missing here has no label.
        params: section `wspn` of params.yaml.
        seed: the experiment's seed.
        curve: receives the losses of every step.
        checkpoint: resume point to restore and save.
    """
    run = params.end_to_end
    num_classes = len(model.config.category_ids)
    views = ViewStream(images, labels, num_classes, run.views, params.proposals_per_image, seed)
    losses = partial(image_losses, training=run, seeds=params.seeds, localise=params.localise)
    freeze_stages(model.trunk, params.model.backbone.frozen_stages)
    train_end_to_end(model, views, losses, run, seed, curve, checkpoint)
    return {
        "images": len(images),
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameters_trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
