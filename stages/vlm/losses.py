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
from torch.nn import functional


def pool_patches(logits: torch.Tensor, sharpness: float) -> torch.Tensor:
    """Return (B, C) of word-patch logits (B, P, C): their softmax-weighted mean over patches."""
    return (logits * (sharpness * logits).softmax(1)).sum(1)


def word_alignment(scores: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of each present word against all absent ones.

    Args:
        scores: (B, C) pooled word scores.
        present: bool (B, C), the caption has the word.
    """
    absent = scores.masked_fill(present, -1e4).logsumexp(1, keepdim=True)
    loss = (torch.logaddexp(absent, scores) - scores) * present
    return loss.sum() / present.sum().clamp(min=1)


def contrastive(similarity: torch.Tensor) -> torch.Tensor:
    """Return the symmetric cross-entropy of scaled image-text similarities (B, B)."""
    target = torch.arange(len(similarity), device=similarity.device)
    image_to_text = functional.cross_entropy(similarity, target)
    text_to_image = functional.cross_entropy(similarity.T, target)
    return (image_to_text + text_to_image) / 2


def hard_negatives(
    similarity: torch.Tensor, tokens: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Return for each image the row (B,) of another caption, drawn the likelier the more similar.

    A caption with the same words is never drawn, unless there is no other.
    """
    same = (tokens[:, None] == tokens[None]).all(-1)
    weights = similarity.detach().softmax(1).masked_fill(same, 0) + 1e-6 * ~torch.eye(
        len(tokens), dtype=torch.bool, device=tokens.device
    )
    return torch.multinomial(weights, 1, generator=generator)[:, 0]


def matching(logits: torch.Tensor, matches: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Return the two-way cross-entropy of matching logits (B, M, 2); a true pair counts twice.

    Args:
        logits: (B, M, 2).
        matches: bool (B, M), the text belongs to the image.
        valid: bool (B, M), the text counts.
    """
    loss = functional.cross_entropy(
        logits.flatten(0, 1), matches.flatten().long(), reduction="none"
    )
    weights = (torch.where(matches, 2.0, 1.0) * valid).flatten()
    return (loss * weights).sum() / weights.sum().clamp(min=1)


def replaced_words(
    logits: list[torch.Tensor], replaced: torch.Tensor, counted: torch.Tensor
) -> torch.Tensor:
    """Return the mean over fusion layers of the binary loss "this word was replaced".

    Args:
        logits: per layer (B, M, L).
        replaced: bool (B, M, L).
        counted: bool (B, M, L), visible words only.
    """
    weights = counted * torch.where(replaced, 1.5, 1.0)
    total = weights.sum().clamp(min=1)
    losses = [
        functional.binary_cross_entropy_with_logits(layer, replaced.float(), reduction="none")
        for layer in logits
    ]
    return reduce(add, [(loss * weights).sum() / total for loss in losses]) / len(losses)
