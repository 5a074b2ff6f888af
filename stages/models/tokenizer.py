"""WordPiece tokenisation as BERT has it, with a vocabulary read from a file or built from captions.

Shape legend: B captions, L tokens. Token 0 is padding; every caption starts with [CLS].
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from tokenizers.processors import BertProcessing

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNKNOWN, START, END, MASK = range(5)
CONTINUATION = "##"

# Words that name nothing one could point at. The VLM's word alignment leaves them out.
FUNCTION_WORDS = frozenset(
    """a an the this that these those some any each every no not there here it its is are was
    were be been being am has have had do does did can could will would may might shall should
    must of in on at to from with without by for near next behind under over above below
    between beside into onto out off up down and or but nor so as if than then when while
    where which who whom whose what how i we you he she they me us him her them my our your
    his their one two three four five six seven eight nine ten several many few more most
    other another again very just also only""".split()
)


class CaptionTokenizer:
    """WordPiece with fixed ids for the special tokens."""

    def __init__(self, words: Sequence[str], max_tokens: int) -> None:
        """Take the vocabulary in order of its ids, special tokens included."""
        if tuple(words[: len(SPECIAL)]) != SPECIAL:
            raise ValueError(f"the vocabulary must begin with {SPECIAL}, found {words[:5]}")
        self.words = tuple(words)
        self.max_tokens = max_tokens
        self.ids = {word: index for index, word in enumerate(words)}
        core = Tokenizer(WordPiece(self.ids, unk_token="[UNK]"))
        core.normalizer = normalizers.BertNormalizer(lowercase=True)
        core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        core.post_processor = BertProcessing(("[SEP]", END), ("[CLS]", START))
        core.enable_truncation(max_tokens)
        self._core = core

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, captions: Sequence[str]) -> torch.Tensor:
        """Return token ids int64 (B, L), padded to the longest caption of the batch."""
        rows = [encoding.ids for encoding in self._core.encode_batch(list(captions))]
        longest = max((len(row) for row in rows), default=0)
        return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])

    def tokens_at(self, caption: str, start: int, end: int) -> list[int]:
        """Return the positions of the tokens that lie in characters [start, end) of `caption`.

        Empty if the caption was cut before them.
        """
        offsets = self._core.encode(caption).offsets
        return [k for k, (a, b) in enumerate(offsets) if a >= start and b <= end and b > a]

    def content_words(self) -> torch.Tensor:
        """Return the ids of whole words that are no function words: what a picture can show."""
        return torch.tensor(
            [
                index
                for index, word in enumerate(self.words)
                if index >= len(SPECIAL)
                and word.isalpha()
                and not word.startswith(CONTINUATION)
                and word not in FUNCTION_WORDS
            ],
            dtype=torch.int64,
        )


def build_vocabulary(captions: Iterable[str], min_count: int) -> list[str]:
    """Return a WordPiece vocabulary of the words seen at least `min_count` times.

    A regular plural is split into its singular and "##s", so that both train one embedding.
    """
    splitter = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(word for word, _ in splitter.pre_tokenize_str(caption.lower()))
    frequent = {word for word, count in counts.items() if count >= min_count}
    plurals = {w for w in frequent if len(w) > 3 and w.endswith("s") and w[:-1] in frequent}
    suffixes = {CONTINUATION + "s"} if plurals else set()
    return [*SPECIAL, *sorted((frequent - plurals) | suffixes)]
