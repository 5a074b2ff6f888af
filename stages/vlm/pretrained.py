"""Take a pretrained vision-language model into data/vlm: the official ALBEF, or a BLIP of the hub.

Later stages read data/vlm only. The checkpoint is no file that DVC looks at: its digest in
params.yaml is what ties the results to it.
"""

from pathlib import Path

from stages.common.runtime.hub import find_hub_file
from stages.models.backbones.weights import check_digest, read_checkpoint
from stages.models.vision_language.albef import save_albef
from stages.models.vision_language.blip import Blip, load_network, save_blip
from stages.models.vision_language.tokenizer import CaptionTokenizer
from stages.vlm.official import albef_from_official
from stages.vlm.params import PretrainedParams

Facts = dict[str, float | dict[str, int]]  # of the metrics
KEY = "vlm.pretrained"
# What the official preparation of captions drops.
ALBEF_IGNORED, BLIP_IGNORED = ",.'!?\"()*#:;~", '.!"()*#:;~'
BLIP_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def find_pretrained(source: str, params: PretrainedParams) -> Path:
    """Return the file with the weights of a source, albef or blip.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: none is named, or it has another digest than `sha256`.
    """
    if params.checkpoint is None:
        raise ValueError(
            f"params.yaml: {KEY}.checkpoint: is null, but vlm.source asks for pretrained weights;"
            " set its path, or vlm.source to train"
        )
    if source == "albef":
        path = Path(params.checkpoint)
        if not path.is_file():
            raise FileNotFoundError(
                f"params.yaml: {KEY}.checkpoint: {path.absolute()} is not there; the page of"
                " salesforce/ALBEF links ALBEF.pth"
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
        FileNotFoundError: no checkpoint or no vocabulary there.
        ValueError: another digest than `sha256`, keys not accounted for, or a vocabulary of
            another size than the word embeddings.
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
        FileNotFoundError: no such folder, and not in the hub's cache.
        ValueError: another digest than `sha256`, keys not accounted for, or more words than word
            embeddings.
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
    """Return the words of a BERT vocabulary in order of their ids.

    `reference` is a text file of one word a line, or a model in hub format that has a vocab.txt.

    Raises:
        FileNotFoundError: none of them; the message names the param.
    """
    path = Path(reference)
    if not path.is_file():
        path = find_hub_file(reference, "vocab.txt", f"{KEY}.vocabulary")
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
