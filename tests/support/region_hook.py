"""A comparator in one file: a loss pulls regions to their texts, and a convolution is the head."""

import torch
from torch import nn
from torch.nn import functional

from stages.models.detection.region_hooks import SampledRegions


def region_loss(regions: SampledRegions) -> torch.Tensor:
    """Return the mean over all regions of one minus the cosine to their text; background has 0."""
    assert len(regions.images) == len(regions.boxes_xyxy)
    assert len(regions.logits) == sum(map(len, regions.boxes_xyxy)) == len(regions.labels)
    texts = regions.classifier.embeddings[(regions.labels - 1).clamp(0)]
    projected = regions.classifier.projection(regions.features)
    apart = 1 - functional.cosine_similarity(projected, texts, dim=1)
    return (apart * (regions.labels > 0)).mean()


def region_head(channels: int, side: int, features: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, features, side), nn.Flatten(), nn.ReLU())
