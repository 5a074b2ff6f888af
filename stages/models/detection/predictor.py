"""Finds objects of any names in any images: the trained detector with a text encoder.

The detector classifies regions by their similarity to text embeddings, so another vocabulary takes
no more than a list of names. A predictor is a folder of five files:

    detector.safetensors       as `stages.models.detection.detector.save` writes it
    text_encoder.safetensors   the vision-language model; its text encoder made the embeddings,
                               unless prompts.json says CLIP
    categories.json            the classes it was trained on, with their synonyms
    prompts.json               a `NameEmbeddingParams`: encoder, pooling and templates
    inference.json             an `InferenceParams`: which detections remain

Frame: pixels of the given image, whatever size the network resizes it to.
"""

import difflib
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from pydantic import ValidationError

from stages.common.formats.categories import Category, read_categories
from stages.common.runtime.params import SectionType, in_one_line
from stages.common.runtime.storage import read_json
from stages.models.detection.detector import Detector, Prediction, load, predict
from stages.models.detection.params import InferenceParams
from stages.models.vision_language.name_embedding import NameEmbedder, load_name_embedder
from stages.models.vision_language.params import NameEmbeddingParams

DETECTOR, TEXT_ENCODER = "detector.safetensors", "text_encoder.safetensors"
CATEGORIES, PROMPTS, INFERENCE = "categories.json", "prompts.json", "inference.json"
# As a fraction of an embedding's length. Recomputed embeddings differ from those of training in the
# last bits; those of other templates or another encoder differ by tenths.
SAME_EMBEDDING = 1e-3


class UnknownWordsError(ValueError):
    """Names have words that the text encoder never learned; the message lists them."""


class Predictor:
    """A detector that takes its vocabulary at each call; threads may share it."""

    def __init__(
        self,
        detector: Detector,
        inference: InferenceParams,
        embedder: NameEmbedder,
        all_forms: bool,
        categories: Sequence[Category],
    ) -> None:
        """Put the parts together.

        Args:
            detector: the trained network.
            inference: which of its detections remain.
            embedder: the one that made the detector's embeddings.
            all_forms: whether these are means over all forms of a class.
            categories: base and novel classes of the training, in the order of its embeddings.

        Raises:
            ValueError: the embedder does not give the embeddings of the detector's training.
        """
        self._detector, self._inference = detector, inference
        self._embedder, self._all_forms = embedder, all_forms
        self._categories = {category.name.lower(): category for category in categories}
        self._vectors: dict[str, torch.Tensor] = {}
        self._lock = threading.Lock()
        self._refuse_strangers()

    @property
    def names(self) -> list[str]:
        """Return the names of the classes it was trained on."""
        return [category.name for category in self._categories.values()]

    @property
    def detections_per_image(self) -> int:
        """Return how many instances an image can have."""
        return self._inference.detections_per_image

    def predict(
        self, images: Sequence[np.ndarray], names: Sequence[str], allow_unknown: bool = False
    ) -> list[Prediction]:
        """Return the instances in each image; label k is `names[k]`.

        The scores of an architecture with a softmax, such as Mask R-CNN, are probabilities among
        these names and the background, so they depend on the whole list. No score depends on the
        other images.

        Args:
            images: RGB uint8 (H, W, 3) each, of any size.
            names: what to look for; synonyms of one thing compete with each other.
            allow_unknown: read a word that the text encoder does not know as [UNK] instead of
                refusing it. All such names have about the same embedding.

        Raises:
            UnknownWordsError: a name has a word that the text encoder does not know.
            ValueError: there are no names, or one is blank or given twice.
        """
        vocabulary = [range(len(names))]
        with self._lock:
            classifier = self._detector.classifier
            embeddings = self.embed(names, allow_unknown)
            classifier.embeddings = embeddings.to(classifier.embeddings.device)
            return predict(self._detector, images, vocabulary, self._inference)[0]

    def embed(
        self, names: Sequence[str], allow_unknown: bool = False
    ) -> Float32[torch.Tensor, "C D"]:
        """Return the embeddings of names; raises as `predict` does."""
        keys = [" ".join(name.lower().split()) for name in names]
        visible = [any(map(str.isprintable, key.replace(" ", ""))) for key in keys]
        if not keys or not all(visible) or len(set(keys)) < len(keys):
            raise ValueError(f"names: expected different words or phrases, found {list(names)}")
        if not allow_unknown:
            self.refuse_unknown_words(names)
        for key in keys:
            if key not in self._vectors:
                category = self._categories.get(key, Category(0, key, "novel", (key,)))
                forms = self._embedder.known_forms(category, self._all_forms)
                self._vectors[key] = self._embedder.embed_forms(forms or [key])
        return torch.stack([self._vectors[key] for key in keys])

    def unknown_words(self, names: Sequence[str]) -> dict[str, list[str]]:
        """Return, for each name that has any, the words that the text encoder does not know.

        A class of the training counts as known if any of its synonyms is.
        """
        unknown = {}
        for name in names:
            category = self._categories.get(" ".join(name.lower().split()))
            if category and self._embedder.known_forms(category, all_forms=False):
                continue
            if words := self._embedder.unknown_words(name):
                unknown[name] = words
        return unknown

    def refuse_unknown_words(self, names: Sequence[str]) -> None:
        """Raise `UnknownWordsError` if there are any, with the nearest known words."""
        unknown = dict.fromkeys(w for words in self.unknown_words(names).values() for w in words)
        if unknown:
            told = [f"'{word}'{self._hint(word)}" for word in unknown]
            raise UnknownWordsError(
                f"the text encoder has never read {', '.join(told)}; it knows the"
                f" {len(self._embedder.words)} tokens of the captions that it was trained on"
            )

    def _hint(self, word: str) -> str:
        near = difflib.get_close_matches(word, self._embedder.words, n=1)
        return f" (did you mean '{near[0]}'?)" if near else ""

    def _refuse_strangers(self) -> None:
        trained = self._detector.classifier.embeddings
        own = self.embed(self.names, allow_unknown=True)
        if own.shape != trained.shape or not _same_vectors(own, trained):
            raise ValueError(
                "the text encoder and prompts are not those that the detector was trained with:"
                f" they give other embeddings of its classes ({', '.join(self.names[:3])} …);"
                " take all files of one run, or bring the run up to date with `make repro`"
            )


def load_predictor(folder: Path, device: torch.device | None = None) -> Predictor:
    """Return the predictor in a folder, on `device` or by default the CPU.

    Raises:
        FileNotFoundError: a file of it is missing.
        ValueError: settings are missing, or a file cannot be read or comes from another training
            than the others.
    """
    prompts = _read_settings(folder / PROMPTS, NameEmbeddingParams)
    inference = _read_settings(folder / INFERENCE, InferenceParams)
    embedder = load_name_embedder(prompts, folder / TEXT_ENCODER, device)
    categories = read_categories(folder / CATEGORIES)
    detector = load(folder / DETECTOR).to(device)
    return Predictor(detector, inference, embedder, prompts.all_forms, categories)


def _read_settings(path: Path, model: type[SectionType]) -> SectionType:
    try:
        return model.model_validate(read_json(path))
    except ValidationError as error:
        raise ValueError(f"{path}: {in_one_line(error)}") from None
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such file; a predictor of an earlier version has to be made again"
        ) from None


def _same_vectors(own: torch.Tensor, trained: torch.Tensor) -> bool:
    """Return whether vectors (C, D) agree, relative to each one's length in training."""
    apart = (own - trained).abs().amax(dim=1)
    return bool((apart <= SAME_EMBEDDING * trained.norm(dim=1)).all())
