"""The engine of the detector: whose parts the network is made of.

Each engine is a package beside this file whose module `network` has the class `Network`. It is
imported by name, and only the one that is asked for: detectron2 need not be installed, and in
dvc.yaml stages depend on the chosen engine's package alone.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from stages.models.mask_rcnn import MaskRcnn

Engine = Literal["torchvision", "detectron2"]
DETECTRON2_INSTALL = "https://detectron2.readthedocs.io/tutorials/install.html"


def network_class(engine: Engine) -> "type[MaskRcnn]":
    """Return the class of an engine's networks, with the methods of `MaskRcnn`.

    Raises:
        ModuleNotFoundError: the engine is detectron2, which is not installed.
    """
    if engine == "detectron2" and find_spec("detectron2") is None:
        raise ModuleNotFoundError(
            "params.yaml: detector.engine: detectron2 is not installed, and is in no package"
            f" registry; {DETECTRON2_INSTALL} says how, or set detector.engine to torchvision",
            name="detectron2",
        )
    return import_module(f"{__package__}.{engine}.network").Network
