"""The losses of the small ALBEF.

Source: Align before Fuse §3.2-3.3 (contrastive, matching, masked words).

Two losses are ours, because 12 thousand pairs do not teach what 14 million do: word alignment
(every word of a caption against every word it does not have, over patches) and replaced-word
detection (in the fused states of every fusion layer, so that each layer looks at the image).

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
    """Return (B, C) of word-patch logits (B, P, C): their softmax-weighted mean over patches."""
    return (logits * (sharpness * logits).softmax(1)).sum(1)


def word_alignment(
    scores: Float[torch.Tensor, "B C"], present: Bool[torch.Tensor, "B C"]
) -> Float[torch.Tensor, ""]:
    """Return the mean cross-entropy of each present word against all absent ones.

    Args:
        scores: pooled over patches.
        present: the caption has the word.
    """
    absent = scores.masked_fill(present, -1e4).logsumexp(1, keepdim=True)
    loss = (torch.logaddexp(absent, scores) - scores) * present
    return loss.sum() / present.sum().clamp(min=1)


def contrastive(similarity: Float[torch.Tensor, "B B"]) -> Float[torch.Tensor, ""]:
    """Return the symmetric cross-entropy of scaled image-text similarities."""
    target = torch.arange(len(similarity), device=similarity.device)
    image_to_text = functional.cross_entropy(similarity, target)
    text_to_image = functional.cross_entropy(similarity.T, target)
    return (image_to_text + text_to_image) / 2


def hard_negatives(
    similarity: Float[torch.Tensor, "B B"],
    tokens: Int[torch.Tensor, "B L"],
    generator: torch.Generator,
) -> Int[torch.Tensor, " B"]:
    """Return for each image the row of another caption, drawn the likelier the more similar.

    A caption with the same words is never drawn, unless there is no other.
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
    """Return the two-way cross-entropy of matching logits; a true pair counts twice.

    Args:
        logits: no match, match.
        matches: the text belongs to the image.
        valid: the text counts.
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
    """Return the mean over fusion layers of the binary loss "this word was replaced".

    Args:
        logits: of each layer.
        replaced: where a word was.
        counted: visible words only.
    """
    weights = counted * torch.where(replaced, 1.5, 1.0)
    total = weights.sum().clamp(min=1)
    losses = [
        functional.binary_cross_entropy_with_logits(layer, replaced.float(), reduction="none")
        for layer in logits
    ]
    return reduce(add, [(loss * weights).sum() / total for loss in losses]) / len(losses)
