"""The `wsddn` section of params.yaml."""

from pydantic import Field

from stages.common.runtime.params import Section


class WsddnParams(Section):
    """How proposals with class scores become detections."""

    nms_iou: float = Field(gt=0, le=1)
    max_detections: int = Field(ge=1)
