"""The initial weights of a detector: the small VLM's trunk, ImageNet weights, or neither."""

from pathlib import Path

from stages.common.runtime.storage import read_tensors
from stages.models.backbones.imagenet import load_imagenet_weights
from stages.models.detection.backbones import whole_trunk
from stages.models.detection.detector import Detector
from stages.models.detection.params import StartParams


def load_start(model: Detector, params: StartParams, vlm: Path, section: str) -> list[Path]:
    """Load the weights that `params.init` names; return the files that they come from.

    Args:
        model: built from `params.network`.
        params: of the stage.
        vlm: data/vlm/model.safetensors.
        section: the section of params.yaml with `params`, for error messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: weights are missing, unexpected or of another shape, or the digest differs.
    """
    if params.init == "vlm":
        load_trunk(model, vlm)
        return [vlm]
    if params.init == "imagenet":
        assert params.imagenet.weights is not None  # the section's validator checked it
        path = Path(params.imagenet.weights)
        trunk = whole_trunk(model.parts()["trunk"], model.region_stage)
        load_imagenet_weights(trunk, path, params.imagenet.sha256, f"{section}.imagenet")
        return [path]
    return []


def load_trunk(model: Detector, path: Path) -> None:
    """Load the trunk of the vision-language model in `path` into the detector's.

    Raises:
        ValueError: the file has no trunk of the same sizes.
    """
    tensors, _ = read_tensors(path)
    trunk = {k.removeprefix("trunk."): v for k, v in tensors.items() if k.startswith("trunk.")}
    if not trunk:
        raise ValueError(
            f"{path}: a pretrained vision-language model (vlm.source albef or blip) has no trunk"
            " for the detector; set detector.init (and rpn.init) to random, or to imagenet with"
            " network.backbone.kind resnet50_fpn or resnet50_c4"
        )
    try:
        model.parts()["trunk"].load_state_dict(trunk)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: its trunk does not fit detector.network.backbone (stem_width, width,"
            f" residual_blocks must equal vlm.model's, or set detector.init to random): {error}"
        ) from None
