"""Targets from captions: which tokens of which caption name which class.

Shape legend: B images, M captions per image, L tokens, T targets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from stages.activation.params import ActivationParams
from stages.activation.rounds import Targets
from stages.common.formats.captions import MentionFinder, normalise
from stages.common.formats.categories import Category
from stages.common.runtime.seeding import numpy_generator
from stages.models.vision_language.tokenizer import CaptionTokenizer


def choose_captions(
    captions: Mapping[int, list[str]], image_id: int, params: ActivationParams, seed: int
) -> list[str]:
    """Return the captions of an image that are used: all, or one drawn at random."""
    own = captions.get(image_id, [])
    if params.captions == "all" or not own:
        return own
    return [own[numpy_generator(seed, "activation caption", image_id).integers(len(own))]]


def make_finder(categories: Sequence[Category], params: ActivationParams) -> MentionFinder:
    """Return a finder of classes in captions, by all forms of a class or by its name alone."""
    if params.forms == "name":
        categories = [replace(category, forms=(category.name,)) for category in categories]
    return MentionFinder(categories)


def find_targets(
    captions: list[list[str]], finder: MentionFinder, tokenizer: CaptionTokenizer
) -> tuple[Targets, list[int], int]:
    """Return the targets of a batch, the class id of each, and how many mentions were cut off.

    All mentions of a class in all captions of an image count, and all tokens of a name of several
    words. Targets are ordered by image, then by class id. A mention that does not end before the
    tokeniser's limit is cut off and does not count.

    Args:
        captions: the captions of each image; an image may have none.
        finder: finds the wanted classes.
        tokenizer: the model's tokeniser.
    """
    most = max(1, max((len(group) for group in captions), default=1))
    cleaned = [[normalise(caption) for caption in group] for group in captions]
    padded = [caption for group in cleaned for caption in group + [""] * (most - len(group))]
    tokens = tokenizer.encode(padded).view(len(captions), most, -1)
    places: dict[tuple[int, int], list[tuple[int, int]]] = {}
    cut_off = 0
    for row, group in enumerate(cleaned):
        for column, caption in enumerate(group):
            for mention in finder.find(caption):
                where = tokenizer.tokens_at(caption, mention.start, mention.end)
                cut_off += not where
                key = (row, mention.category_id)
                places.setdefault(key, []).extend((column, position) for position in where)
    keys = sorted(key for key, where in places.items() if where)
    weights = torch.zeros(len(keys), most, tokens.shape[2])
    for index, key in enumerate(keys):
        columns, positions = zip(*places[key], strict=True)
        weights[index, list(columns), list(positions)] = 1.0
    image = torch.tensor([row for row, _ in keys], dtype=torch.int64)
    return Targets(tokens, image, weights), [category_id for _, category_id in keys], cut_off
