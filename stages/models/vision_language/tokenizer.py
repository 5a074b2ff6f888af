"""WordPiece tokenisation as in BERT, with a vocabulary from a file or built from captions.

Shape legend: B captions, L tokens. Token 0 is padding; every caption starts with [CLS].
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Int64
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from tokenizers.processors import BertProcessing

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Ids in a vocabulary built here. A file may have other ids for all of them but padding.
PAD, UNKNOWN, START, END, MASK = range(5)
CONTINUATION = "##"

# Words that name nothing an image can show. The VLM's word alignment leaves them out.
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
    """WordPiece tokeniser; a token's id is its position in the vocabulary."""

    def __init__(self, words: Sequence[str], max_tokens: int, ignored: str = "") -> None:
        """Take the vocabulary in the order of its ids, special tokens included.

        Args:
            words: the vocabulary.
            max_tokens: longer captions are cut; [CLS] and [SEP] count.
            ignored: characters that are removed before a caption is split, such as punctuation that
                a pretrained model never saw.

        Raises:
            ValueError: a special token is missing, or padding is not the first.
        """
        lacking = [token for token in SPECIAL if token not in words]
        if lacking or words[0] != SPECIAL[PAD]:
            raise ValueError(
                f"the vocabulary must begin with {SPECIAL[PAD]} and have {', '.join(SPECIAL[1:])};"
                f" it begins with {list(words[:5])} and lacks {lacking}"
            )
        self.words = tuple(words)
        self.max_tokens = max_tokens
        self.ignored = ignored
        self.ids = {word: index for index, word in enumerate(words)}
        self.unknown = self.ids["[UNK]"]
        core = Tokenizer(WordPiece(self.ids, unk_token="[UNK]"))
        core.normalizer = normalizers.BertNormalizer(lowercase=True)
        if ignored:
            dropped = normalizers.Replace(Regex(f"[{re.escape(ignored)}]"), "")
            core.normalizer = normalizers.Sequence([dropped, core.normalizer])
        core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        core.post_processor = BertProcessing(
            ("[SEP]", self.ids["[SEP]"]), ("[CLS]", self.ids["[CLS]"])
        )
        core.enable_truncation(max_tokens)
        self._core = core

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, captions: Sequence[str]) -> Int64[torch.Tensor, "B L"]:
        """Return token ids, padded to the longest caption of the batch."""
        rows = [encoding.ids for encoding in self._core.encode_batch(list(captions))]
        longest = max((len(row) for row in rows), default=0)
        return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])

    def tokens_at(self, caption: str, start: int, end: int) -> list[int]:
        """Return the positions of the tokens that overlap characters [start, end) of `caption`.

        Where apostrophes are ignored, "dog's" can be one token. The list is empty if the caption
        was cut before the last of them.
        """
        encoding = self._core.encode(caption)
        kept, *cut = (
            [k for k, (a, b) in enumerate(part.offsets) if a < end and b > start]
            for part in (encoding, *encoding.overflowing)
        )
        return [] if any(cut) else kept

    def content_words(self) -> Int64[torch.Tensor, " words"]:
        """Return the ids of words that an image can show: whole words, without function words."""
        return torch.tensor(
            [
                index
                for index, word in enumerate(self.words)
                if word.isalpha()
                and not word.startswith(CONTINUATION)
                and word not in FUNCTION_WORDS
            ],
            dtype=torch.int64,
        )


def build_vocabulary(captions: Iterable[str], min_count: int) -> list[str]:
    """Return a WordPiece vocabulary of the words that occur at least `min_count` times.

    A regular plural whose singular is in the vocabulary is split into it and "##s", so that both
    train one embedding.
    """
    splitter = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(word for word, _ in splitter.pre_tokenize_str(caption.lower()))
    frequent = {word for word, count in counts.items() if count >= min_count}
    plurals = {w for w in frequent if len(w) > 3 and w.endswith("s") and w[:-1] in frequent}
    suffixes = {CONTINUATION + "s"} if plurals else set()
    return [*SPECIAL, *sorted((frequent - plurals) | suffixes)]
