"""Finds which words of the captions the images show, and which words could replace them.

Nothing here knows the object classes: only the captions and the scores of the word alignment count.

Shape legend: B captions of a batch, N of all, L tokens, V words of the vocabulary, C content words,
W visible words.
"""

import torch
from jaxtyping import Bool, Float, Float32, Int64

from stages.models.vision_language.tokenizer import MASK


class VisibilityMeter:
    """Measures how much higher a content word scores where the caption has it.

    The separation d' = (mean score present − mean score absent) / standard deviation is about 0 for
    a word that images do not show ("morning"), and above 1 for most object names.
    """

    def __init__(self, words: int) -> None:
        # On the CPU, because Apple's GPU has no float64.
        self._sums = torch.zeros(2, words, dtype=torch.float64)
        self._squares = torch.zeros(words, dtype=torch.float64)
        self._counts = torch.zeros(2, words, dtype=torch.float64)

    @torch.no_grad()
    def add(self, scores: Float[torch.Tensor, "B C"], present: Bool[torch.Tensor, "B C"]) -> None:
        """Add scores, and whether the caption has the word."""
        scores, present = scores.cpu().double(), present.cpu()
        for row, where in enumerate((present, ~present)):
            self._sums[row] += (scores * where).sum(0)
            self._counts[row] += where.sum(0)
        self._squares += scores.square().sum(0)

    def separation(self) -> Float32[torch.Tensor, " C"]:
        """Return d'; 0 for a word that was always or never present."""
        means = self._sums / self._counts.clamp(min=1)
        total = self._counts.sum(0).clamp(min=1)
        variance = self._squares / total - (self._sums.sum(0) / total).square()
        gap = (means[0] - means[1]) / variance.clamp(min=1e-8).sqrt()
        return torch.where((self._counts > 0).all(0), gap, 0.0).float()


def substitution_weights(
    tokens: Int64[torch.Tensor, "N L"], word_ids: Int64[torch.Tensor, " W"], vocabulary: int
) -> Float32[torch.Tensor, "W W"]:
    """Return weights in [0, 1]: how well word j fits the text in place of word i.

    Words that the same words follow are alike: a noun replaces a noun, so that the text alone does
    not reveal the replacement. A weight is the fourth power of a cosine, that of the square roots
    of the counts of following tokens; it is 0 on the diagonal. Memory: W · V floats.

    Args:
        tokens: all captions.
        word_ids: the words that may be replaced.
        vocabulary: V.
    """
    place = torch.full((vocabulary,), -1, device=tokens.device)
    place[word_ids] = torch.arange(len(word_ids), device=tokens.device)
    rows, following = place[tokens[:, :-1].flatten()], tokens[:, 1:].flatten()
    counted = rows >= 0
    pairs, counts = (rows[counted] * vocabulary + following[counted]).unique(return_counts=True)
    followers = torch.zeros(len(word_ids) * vocabulary, device=tokens.device)
    followers[pairs] = counts.float().sqrt()
    followers = followers.view(-1, vocabulary)
    torch.nn.functional.normalize(followers, dim=1, out=followers)
    return (followers @ followers.T).pow(4).fill_diagonal_(0)


class WordSwapper:
    """Replaces or masks visible words of captions."""

    def __init__(
        self,
        visible: Int64[torch.Tensor, " W"],
        weights: Float32[torch.Tensor, "W W"],
        vocabulary: int,
    ) -> None:
        """Take the ids of the visible words and their `substitution_weights`."""
        self.visible, self._weights = visible, weights
        self._place = torch.full((vocabulary,), -1, device=visible.device)
        self._place[visible] = torch.arange(len(visible), device=visible.device)

    def is_visible(self, tokens: Int64[torch.Tensor, "*N"]) -> Bool[torch.Tensor, "*N"]:
        """Return whether each token is a visible word."""
        return self._place[tokens] >= 0

    def swap(
        self, tokens: Int64[torch.Tensor, "B L"], generator: torch.Generator
    ) -> tuple[Int64[torch.Tensor, "B L"], Bool[torch.Tensor, " B"]]:
        """Replace one visible word of each caption by one that it lacks.

        Returns:
            Captions, and whether a word could be replaced.
        """
        seen = self.is_visible(tokens)
        draw = torch.rand(tokens.shape, generator=generator, device=tokens.device)
        draw = draw.masked_fill(~seen, -1.0)
        column = draw.argmax(1)
        rows = torch.arange(len(tokens), device=tokens.device)
        old = self._place[tokens[rows, column]].clamp(min=0)
        weights = self._weights[old].clone()
        present = torch.zeros_like(weights, dtype=torch.bool)
        place = self._place[tokens].clamp(min=0)
        present.scatter_(1, place, seen)
        weights[present] = 0
        possible = seen.any(1) & (weights.sum(1) > 0)
        weights[~possible] = 1.0
        new = self.visible[torch.multinomial(weights, 1, generator=generator)[:, 0]]
        swapped = tokens.clone()
        swapped[rows[possible], column[possible]] = new[possible]
        return swapped, possible

    def mask(
        self,
        tokens: Int64[torch.Tensor, "B L"],
        visible_rate: float,
        other_rate: float,
        generator: torch.Generator,
    ) -> tuple[Int64[torch.Tensor, "B L"], Bool[torch.Tensor, "B L"]]:
        """Mask each visible and each other word with its own probability, but no special token.

        Returns:
            Captions, and where a word is masked.
        """
        draw = torch.rand(tokens.shape, generator=generator, device=tokens.device)
        hidden = torch.where(self.is_visible(tokens), draw < visible_rate, draw < other_rate)
        hidden &= tokens > MASK
        return tokens.masked_fill(hidden, MASK), hidden
