"""Full-size models with random weights: `python -m benchmarks.random_weights --help`.

The profiles coco-mini-full and coco-mini-full-blip use them to show that the whole DAG runs at full
size on a machine without pretrained weights; coco-laptop can be timed with them. Files have the
official formats: ALBEF.pth and vocab.txt, folders `blip` and `clip` as on the hub, vgg16.pth and
resnet50.pth as from torchvision.
"""

import argparse
import json
import re
from pathlib import Path

import torch
from torchvision.models import resnet50, vgg16

from stages.models.vision_language.tokenizer import SPECIAL
from tests.golden import official_albef


def words_of(captions: Path, count: int) -> list[str]:
    """Return a vocabulary of `count` entries with every word and letter of the captions."""
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


def write_albef(folder: Path, captions: Path) -> list[str]:
    """Write ALBEF.pth, and vocab.txt of words that the captions use; return the words."""
    words = words_of(captions, official_albef.FULL.words)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    official_albef.write_checkpoint(folder / "ALBEF.pth", official_albef.FULL)
    return words


def write_clip(folder: Path) -> None:
    """Write CLIP's text encoder at the size of ViT-B/32; its tokeniser has single letters only."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    torch.manual_seed(0)
    config = CLIPTextConfig()
    letters = [f"{chr(code)}{suffix}" for code in range(97, 123) for suffix in ("", "</w>")]
    ends = ["<|startoftext|>", "<|endoftext|>"]
    unused = [f"[unused{k}]" for k in range(config.vocab_size - len(letters) - len(ends))]
    tokens = [*letters, *unused, *ends]
    CLIPTokenizer(vocab={t: k for k, t in enumerate(tokens)}, merges=[]).save_pretrained(folder)
    CLIPTextModelWithProjection(config).save_pretrained(folder)


def write_imagenet(folder: Path) -> None:
    """Write vgg16.pth and resnet50.pth; blocks add nothing, so that activations do not grow."""
    torch.manual_seed(0)
    torch.save(vgg16().state_dict(), folder / "vgg16.pth")
    torch.save(resnet50(zero_init_residual=True).state_dict(), folder / "resnet50.pth")


def main() -> None:
    """Write all models."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.random_weights", description=__doc__
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--captions", type=Path, required=True, help="COCO's; its words are known")
    options = parser.parse_args()
    write_blip(options.folder / "blip", write_albef(options.folder, options.captions))
    write_clip(options.folder / "clip")
    write_imagenet(options.folder)
    print(f"{', '.join(sorted(p.name for p in options.folder.iterdir()))}: {options.folder}")


if __name__ == "__main__":
    main()
