"""Full-size ALBEF and BLIP with random weights: `python -m benchmarks.random_weights ../weights`.

For the profiles coco-mini-full and coco-mini-full-blip, which show that the whole DAG runs at full
size on a machine that has no pretrained weights. Files have the official forms: ALBEF.pth and
vocab.txt, and a folder `blip` as on the hub.
"""

import argparse
import json
import re
from pathlib import Path

import torch

from stages.models.vision_language.tokenizer import SPECIAL
from tests.golden import official_albef

CAPTIONS = Path("../shared/coco-mini/annotations/captions_train2017.json")


def words_of(captions: Path, count: int) -> list[str]:
    """Return a vocabulary of `count` entries that knows every word and letter of the captions."""
    texts = [entry["caption"].lower() for entry in json.loads(captions.read_text())["annotations"]]
    words = {word for text in texts for word in re.findall(r"[a-z]+|[^a-z\s]", text)}
    letters = {f"{prefix}{chr(code)}" for code in range(97, 123) for prefix in ("", "##")}
    known = [*SPECIAL, *sorted(words | letters)]
    return [*known, *(f"[unused{number}]" for number in range(count - len(known)))]


def write_blip(folder: Path, words: list[str]) -> None:
    """Write BLIP at the size of blip-itm-base as transformers saves it."""
    from transformers import BlipConfig, BlipForImageTextRetrieval

    torch.manual_seed(0)
    words = [*words, "[DEC]", "[ENC]"]
    sizes = {"vocab_size": len(words), "encoder_hidden_size": 768}
    config = BlipConfig(text_config=sizes, vision_config={"image_size": 384})
    BlipForImageTextRetrieval(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")


def main() -> None:
    """Write both models."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.random_weights", description=__doc__
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--captions", type=Path, default=CAPTIONS, help="whose words are known")
    options = parser.parse_args()
    words = words_of(options.captions, official_albef.FULL.words)
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    official_albef.write_checkpoint(options.folder / "ALBEF.pth", official_albef.FULL)
    write_blip(options.folder / "blip", words)
    print(f"ALBEF.pth, vocab.txt and blip are in {options.folder.resolve()}")


if __name__ == "__main__":
    main()
