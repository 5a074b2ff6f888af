"""The detector as an MLflow model: images and names in, instances out.

MLflow copies this file into the model ("models from code"), with stages/common and stages/models
beside it. A process that loads the model needs the packages but not this repository, and unpickles
nothing. So this file imports nothing else.
"""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd


class DetectorModel(mlflow.pyfunc.PythonModel):
    """Turns rows of `image` (the bytes of a JPEG or PNG) and `names` into rows of `instances`."""

    def load_context(self, context: mlflow.pyfunc.PythonModelContext) -> None:
        """Read the predictor's folder; PyTorch is imported here, not when the model is logged."""
        from stages.common.runtime.devices import compute_device
        from stages.models.detection.predictor import load_predictor

        self._predictor = load_predictor(Path(context.artifacts["predictor"]), compute_device())

    def predict(
        self,
        context: mlflow.pyfunc.PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Return one row per image: `instances`, best first, in the frame that a viewer shows.

        An instance has a name, a score in [0, 1], a bbox (x, y, width, height in pixels) and a
        segmentation as COCO's RLE.

        Raises:
            ValueError: bytes are not an image, or names have unknown words; it names the row.
        """
        params = params or {}
        rows = [
            self._instances(f"row {number}", image, names, params)
            for number, (image, names) in enumerate(
                zip(model_input["image"], model_input["names"], strict=True)
            )
        ]
        return pd.DataFrame({"instances": rows}, index=model_input.index)

    def _instances(self, row: str, image: bytes, names: Any, params: dict) -> list[dict]:
        from stages.common.formats.images import decode_upright
        from stages.models.detection.coco_results import to_results

        pixels, names = decode_upright(bytes(image), row), [str(name) for name in names]
        allow_unknown = params.get("allow_unknown", False)
        try:
            (found,) = self._predictor.predict([pixels], names, allow_unknown)
        except ValueError as error:
            raise ValueError(f"{row}: {error}") from error
        results = to_results(0, found, range(len(names)), params.get("min_score", 0.3))
        return [
            {
                "name": names[result["category_id"]],
                **{key: result[key] for key in ("score", "bbox", "segmentation")},
            }
            for result in results
        ]


mlflow.models.set_model(DetectorModel())
