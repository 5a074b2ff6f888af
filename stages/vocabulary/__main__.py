"""Stage `vocabulary`: text embeddings of all base and novel class names.

Run: python -m stages.vocabulary. Writes data/vocabulary/embeddings.safetensors.
"""

import sys
from pathlib import Path

from stages.common.formats.categories import read_categories
from stages.common.runtime.devices import prepare_device
from stages.common.runtime.params import read_exactness, read_section
from stages.common.runtime.seeding import make_deterministic
from stages.common.runtime.storage import write_tensors
from stages.models.vision_language.name_embedding import load_name_embedder
from stages.vocabulary.embed import embed_categories
from stages.vocabulary.params import VocabularyParams

CATEGORIES = Path("data/download/categories.json")
MODEL = Path("data/vlm/model.safetensors")
OUTPUT = Path("data/vocabulary/embeddings.safetensors")


def main() -> None:
    """Run the stage."""
    params = read_section("vocabulary", VocabularyParams)
    make_deterministic(0, "vocabulary", threads=1)
    embedder = load_name_embedder(params, MODEL, prepare_device(read_exactness()))
    categories = read_categories(CATEGORIES)
    embeddings, unknown = embed_categories(embedder, categories, params)
    if unknown:
        print(f"vocabulary: read as [UNK]: {', '.join(unknown)}", file=sys.stderr)
    names = [category.name for category in categories]
    write_tensors(OUTPUT, {"embeddings": embeddings}, {"names": names, "unknown": unknown})


if __name__ == "__main__":
    main()
