"""Converts a pretrained vision-language model into data/vlm: the official ALBEF, or a BLIP.

Later stages read data/vlm only. DVC does not track the checkpoint: its digest in params.yaml ties
the results to it.
"""

from pathlib import Path

from stages.common.runtime.hub import find_hub_file
from stages.models.backbones.weights import check_digest, read_checkpoint
from stages.models.vision_language.albef import save_albef
from stages.models.vision_language.blip import Blip, load_network, save_blip
from stages.models.vision_language.tokenizer import CaptionTokenizer
from stages.vlm.official import albef_from_official
from stages.vlm.params import PretrainedParams

Facts = dict[str, float | dict[str, int]]  # for metrics.json
KEY = "vlm.pretrained"
# Characters that the official preprocessing of captions drops.
ALBEF_IGNORED, BLIP_IGNORED = ",.'!?\"()*#:;~", '.!"()*#:;~'
BLIP_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def find_pretrained(source: str, params: PretrainedParams) -> Path:
    """Return the weights file of source "albef" or "blip".

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: params.yaml names no checkpoint, or the digest differs from `sha256`.
    """
    if params.checkpoint is None:
        raise ValueError(
            f"params.yaml: {KEY}.checkpoint: is null, but vlm.source asks for pretrained weights;"
            " set the path, or set vlm.source to train"
        )
    if source == "albef":
        path = Path(params.checkpoint)
        if not path.is_file():
            raise FileNotFoundError(
                f"params.yaml: {KEY}.checkpoint: {path.absolute()} is not there; the"
                " README of salesforce/ALBEF links ALBEF.pth"
            )
    else:
        folder = find_hub_file(params.checkpoint, "config.json", f"{KEY}.checkpoint").parent
        found = next((folder / n for n in BLIP_WEIGHTS if (folder / n).is_file()), None)
        if found is None:
            raise FileNotFoundError(f"{folder}: has none of {', '.join(BLIP_WEIGHTS)}")
        path = found
    check_digest(path, params.sha256, f"{KEY}.sha256")
    return path


def convert_albef(params: PretrainedParams, output: Path) -> Facts:
    """Write the official ALBEF checkpoint to `output`; return facts for the metrics.

    Raises:
        FileNotFoundError: the checkpoint or the vocabulary is missing.
        ValueError: the digest differs from `sha256`, keys are missing or unexpected, or the
            vocabulary and the word embeddings differ in size.
    """
    checkpoint = find_pretrained("albef", params)
    words = read_vocabulary(params.vocabulary)
    model, left_out = albef_from_official(read_checkpoint(checkpoint), checkpoint)
    if len(words) != model.config.vocabulary_size:
        raise ValueError(
            f"params.yaml: {KEY}.vocabulary: {len(words)} words, but {checkpoint} has embeddings"
            f" of {model.config.vocabulary_size}"
        )
    save_albef(output, model, CaptionTokenizer(words, params.max_tokens, ALBEF_IGNORED))
    return {
        "words": len(words),
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights": len(model.state_dict()),
        "left_out": left_out,
    }


def convert_blip(params: PretrainedParams, output: Path) -> Facts:
    """Write a BLIP for image-text retrieval to `output`; return facts for the metrics.

    Raises:
        FileNotFoundError: the model or the vocabulary is missing, in the hub's cache too.
        ValueError: the digest differs from `sha256`, keys are missing or unexpected, or the
            vocabulary has more words than there are word embeddings.
    """
    folder = find_pretrained("blip", params).parent
    words = read_vocabulary(params.vocabulary)
    network, left_out = load_network(folder, folder)
    embeddings = network.get_input_embeddings().num_embeddings
    if len(words) > embeddings:
        raise ValueError(
            f"params.yaml: {KEY}.vocabulary: {len(words)} words, but {folder} has embeddings of"
            f" {embeddings}"
        )
    save_blip(output, Blip(network), CaptionTokenizer(words, params.max_tokens, BLIP_IGNORED))
    return {
        "words": len(words),
        "parameters": sum(p.numel() for p in network.parameters()),
        "weights": len(network.state_dict()),
        "left_out": {"position_ids": left_out},
    }


def read_vocabulary(reference: str) -> list[str]:
    """Return the words of a BERT vocabulary in the order of their ids.

    Args:
        reference: a text file with one word per line, or a model in hub format with a vocab.txt.

    Raises:
        FileNotFoundError: there is neither; the message names the param.
    """
    path = Path(reference)
    if not path.is_file():
        path = find_hub_file(reference, "vocab.txt", f"{KEY}.vocabulary")
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
