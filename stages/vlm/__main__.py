"""Stage `vlm`: train the small ALBEF on the image-caption pairs, or convert a pretrained model.

Run: python -m stages.vlm. Writes data/vlm/.
"""

from pathlib import Path

import torch

from stages.common.formats.captions import read_captions
from stages.common.formats.images import read_images
from stages.common.runtime.curves import Curve
from stages.common.runtime.devices import prepare_device
from stages.common.runtime.params import read_exactness, read_section, read_seed
from stages.common.runtime.seeding import derive_seed, make_deterministic, torch_generator
from stages.common.runtime.storage import write_json
from stages.models.vision_language.small_albef import SmallAlbef, SmallAlbefConfig, save_small_albef
from stages.models.vision_language.tokenizer import CaptionTokenizer, build_vocabulary
from stages.vlm.pairs import PairSampler, load_images
from stages.vlm.params import VlmParams
from stages.vlm.pretrained import Facts, convert_albef, convert_blip
from stages.vlm.train import train_vlm

IMAGES = Path("data/download/images/pairs.parquet")
CAPTIONS = Path("data/download/captions/pairs.json")
OUTPUT = Path("data/vlm")
MODEL = OUTPUT / "model.safetensors"


def main() -> None:
    """Run the stage."""
    params, seed = read_section("vlm", VlmParams), read_seed()
    make_deterministic(seed, "vlm")
    curve = Curve(every=50, growing=OUTPUT / "curve.csv")
    if params.source == "train":
        facts = _train(params, seed, curve)
    else:
        convert = {"albef": convert_albef, "blip": convert_blip}[params.source]
        facts = convert(params.pretrained, MODEL)
    curve.write(OUTPUT / "curve.csv")  # no rows if nothing was trained
    write_json(OUTPUT / "metrics.json", facts)


def _train(params: VlmParams, seed: int, curve: Curve) -> Facts:
    """Train and save the small ALBEF; return facts for the metrics."""
    captions = read_captions(CAPTIONS)
    images, ids = load_images(read_images(IMAGES), params.image_size)
    without = [image_id for image_id in ids if not captions.get(image_id)]
    if without:
        raise ValueError(f"{CAPTIONS}: no caption for images {without[:5]} of {IMAGES}")

    texts = [captions[image_id] for image_id in ids]
    words = build_vocabulary((c for group in texts for c in group), params.min_word_count)
    tokenizer = CaptionTokenizer(words, params.model.max_tokens)
    all_tokens = tokenizer.encode([caption for group in texts for caption in group])
    model = SmallAlbef(SmallAlbefConfig(vocabulary_size=len(words), **params.model.model_dump()))
    model.to(prepare_device(read_exactness()))
    model.trunk.to(memory_format=torch.channels_last)
    sampler = PairSampler(
        images,
        list(all_tokens.split([len(group) for group in texts])),
        params.batch_size,
        derive_seed(seed, "vlm", "pairs"),
    )
    facts = train_vlm(
        model, tokenizer, sampler, all_tokens, params, torch_generator(seed, "vlm", "text"), curve
    )
    save_small_albef(MODEL, model, tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "pairs": len(ids),
        "words": len(words),
        "parameters": parameters,
        **facts,
        **curve.last(),
    }


if __name__ == "__main__":
    main()
