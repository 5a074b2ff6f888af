"""CLIP's text tower, as transformers implements it, as the encoder of prompts.

transformers is imported only when the encoder is built, because the import takes seconds.
Source: Mask-free OVIS §3.4 (official code: ViT-B/32).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float32

from stages.common.runtime.hub import find_hub_file

KEY = "vocabulary.clip.folder"
BATCH = 256  # prompts


class ClipTextEncoder:
    """Encodes prompts; it knows every name, because it splits words down to bytes."""

    words = ()

    def __init__(self, reference: str, device: torch.device | None = None) -> None:
        """Load from a folder in hub format, or from the hub's cache by the model's name.

        Raises:
            FileNotFoundError: the model is in neither.
            ValueError: weights are missing, or the tokeniser belongs to another model.
        """
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer

        folder = find_hub_file(reference, "config.json", KEY).parent
        self._model, report = CLIPTextModelWithProjection.from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
        if report["missing_keys"]:
            raise ValueError(f"{folder}: missing weights {sorted(report['missing_keys'])}")
        self._tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        words = self._model.config.vocab_size
        if len(self._tokenizer) != words:
            raise ValueError(
                f"params.yaml: {KEY}: the tokeniser in {folder} has {len(self._tokenizer)} tokens,"
                f" the model {words}; its vocab.json and merges.txt, or its tokenizer.json, are"
                " missing or of another model"
            )
        self._model.eval().requires_grad_(False).to(device)

    def knows(self, name: str) -> bool:
        """Return True: no word is unknown."""
        return True

    def encode(
        self, prompts: Sequence[str], places: Sequence[tuple[int, int]]
    ) -> Float32[torch.Tensor, "P D"]:
        """Return projected text features of the prompts, not normalised.

        `places` (of the name in each prompt) are not used. Prompts are cut to CLIP's longest text.
        """
        limit = self._model.config.max_position_embeddings
        features = []
        for start in range(0, len(prompts), BATCH):
            tokens = self._tokenizer(
                list(prompts[start : start + BATCH]),
                padding=True,
                truncation=True,
                max_length=limit,
                return_tensors="pt",
            )
            features.append(self._model(**tokens.to(self._model.device)).text_embeds)
        return torch.cat(features)
