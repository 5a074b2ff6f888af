"""The losses of the small ALBEF.

Source: Align before Fuse §3.2 (contrastive, matching, masked words), without its momentum model and
queues: the negatives are those of the batch.

Two losses are ours, because 12 thousand pairs do not teach what 14 million do. Word alignment
compares each word of a caption with all words that the caption lacks, over the patches.
Replaced-word detection reads the states of every fusion layer, so that each layer must use the
image.

Shape legend: B pairs, M texts per image, L tokens, P patches, C content words.
"""

from functools import reduce
from operator import add

import torch
from jaxtyping import Bool, Float, Int
from torch.nn import functional


def pool_patches(
    logits: Float[torch.Tensor, "B P C"], sharpness: float
) -> Float[torch.Tensor, "B C"]:
    """Pool word-patch logits: their mean over patches, weighted by softmax(sharpness * logits)."""
    return (logits * (sharpness * logits).softmax(1)).sum(1)


def word_alignment(
    scores: Float[torch.Tensor, "B C"], present: Bool[torch.Tensor, "B C"]
) -> Float[torch.Tensor, ""]:
    """Return the mean cross-entropy of each present word against all absent ones.

    Args:
        scores: logits of the words, pooled over patches.
        present: whether the caption has the word.
    """
    absent = scores.masked_fill(present, -1e4).logsumexp(1, keepdim=True)
    loss = (torch.logaddexp(absent, scores) - scores) * present
    return loss.sum() / present.sum().clamp(min=1)


def contrastive(similarity: Float[torch.Tensor, "B B"]) -> Float[torch.Tensor, ""]:
    """Return the symmetric cross-entropy of image-text similarities, divided by the temperature."""
    target = torch.arange(len(similarity), device=similarity.device)
    image_to_text = functional.cross_entropy(similarity, target)
    text_to_image = functional.cross_entropy(similarity.T, target)
    return (image_to_text + text_to_image) / 2


def hard_negatives(
    similarity: Float[torch.Tensor, "B B"],
    tokens: Int[torch.Tensor, "B L"],
    generator: torch.Generator,
) -> Int[torch.Tensor, " B"]:
    """Draw another caption for each image, with probability proportional to softmax(similarity).

    Returns:
        The rows of the drawn captions. 1e-6 is added to each weight except that of the image's own
        caption. A caption with the same words has this weight alone.
    """
    same = (tokens[:, None] == tokens[None]).all(-1)
    weights = similarity.detach().softmax(1).masked_fill(same, 0) + 1e-6 * ~torch.eye(
        len(tokens), dtype=torch.bool, device=tokens.device
    )
    return torch.multinomial(weights, 1, generator=generator)[:, 0]


def matching(
    logits: Float[torch.Tensor, "B M 2"],
    matches: Bool[torch.Tensor, "B M"],
    valid: Bool[torch.Tensor, "B M"],
) -> Float[torch.Tensor, ""]:
    """Return the mean two-way cross-entropy of matching logits; a true pair has weight 2.

    Args:
        logits: of "no match" and "match".
        matches: whether the text belongs to the image.
        valid: whether the text counts.
    """
    loss = functional.cross_entropy(
        logits.flatten(0, 1), matches.flatten().long(), reduction="none"
    )
    weights = (torch.where(matches, 2.0, 1.0) * valid).flatten()
    return (loss * weights).sum() / weights.sum().clamp(min=1)


def replaced_words(
    logits: list[Float[torch.Tensor, "B M L"]],
    replaced: Bool[torch.Tensor, "B M L"],
    counted: Bool[torch.Tensor, "B M L"],
) -> Float[torch.Tensor, ""]:
    """Return the binary cross-entropy of "this word was replaced", averaged over fusion layers.

    A replaced word has weight 1.5.

    Args:
        logits: one tensor per layer.
        replaced: whether the word was replaced.
        counted: whether the word counts: only visible words do.
    """
    weights = counted * torch.where(replaced, 1.5, 1.0)
    total = weights.sum().clamp(min=1)
    losses = [
        functional.binary_cross_entropy_with_logits(layer, replaced.float(), reduction="none")
        for layer in logits
    ]
    return reduce(add, [(loss * weights).sum() / total for loss in losses]) / len(losses)
