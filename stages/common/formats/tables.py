"""Tables of boxes, one row per box: image_id, x0, y0, x1, y1, and further columns of a stage.

Frame: corners in pixels of the stored image. Shape legend: R boxes.
"""

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float32, Integer

CORNERS = ("x0", "y0", "x1", "y1")


def boxes_table(
    image_ids: Integer[np.ndarray, " R"],
    boxes_xyxy: Float[np.ndarray, "R 4"],
    **columns: np.ndarray,
) -> pa.Table:
    """Return the table of boxes in images `image_ids`, with further columns (R,)."""
    corners = {name: boxes_xyxy[:, index].astype(np.float32) for index, name in enumerate(CORNERS)}
    return pa.table({"image_id": np.asarray(image_ids, np.int64), **corners, **columns})


def table_boxes(table: pa.Table) -> Float32[np.ndarray, "R 4"]:
    """Return the boxes_xyxy of a table."""
    return np.stack([table[name].to_numpy() for name in CORNERS], axis=1)


def boxes_by_image(table: pa.Table) -> dict[int, Float32[np.ndarray, "_ 4"]]:
    """Return the boxes_xyxy of each image, in the order of their rows."""
    image_ids = table["image_id"].to_numpy()
    order = np.argsort(image_ids, kind="stable")
    ids, starts = np.unique(image_ids[order], return_index=True)
    parts = np.split(table_boxes(table)[order], starts[1:])
    return dict(zip(ids.tolist(), parts, strict=True)) if len(ids) else {}
