"""The phrases of all shards: labels in COCO's form, counts, and how often each was said.

All read the tables of stage `phrases` joined in the order of the shards.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from stages.common.formats.categories import Category
from stages.common.formats.narratives import FREE
from stages.common.formats.tables import table_boxes
from stages.common.geometry.boxes import box_area, xyxy_to_xywh

DIGITS = 2  # of a pixel, in the labels


def label_rows(table: pa.Table) -> Int64[np.ndarray, " R"]:
    """Return the rows of the phrases that have a class and a box."""
    named = table["category_id"].to_numpy() != FREE
    return np.flatnonzero(named & ~np.isnan(table["x0"].to_numpy()))


def make_dataset(
    table: pa.Table,
    images: list[dict],
    categories: Sequence[Category],
    several: str,
) -> dict:
    """Return COCO's instances form of the phrases that have a class and a box; there are no masks.

    Annotations also have `phrase`, their row in the table. A box around several objects is a crowd
    if `several` says so.
    """
    rows = label_rows(table)
    own = table.select(["image_id", "category_id", "several", "x0", "y0", "x1", "y1"]).take(rows)
    boxes = table_boxes(own)
    facts = zip(
        rows.tolist(),
        *(own[name].to_pylist() for name in ("image_id", "category_id", "several")),
        xyxy_to_xywh(boxes).tolist(),
        box_area(boxes).tolist(),
        strict=True,
    )
    return {
        "images": images,
        "annotations": [
            {
                "id": number,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": [round(side, DIGITS) for side in box_xywh],
                "area": round(area, DIGITS),
                "iscrowd": int(is_several and several == "crowd"),
                "phrase": row,
            }
            for number, (row, image_id, category_id, is_several, box_xywh, area) in enumerate(
                facts, 1
            )
        ],
        "categories": [{"id": c.id, "name": c.name, "split": c.split} for c in categories],
    }


def make_metrics(
    table: pa.Table,
    dataset: dict,
    categories: Sequence[Category],
    num_narratives: int,
) -> dict:
    """Return counts: narratives, phrases, those of a class, those without a box and why, labels."""
    split = {category.id: category.split for category in categories}
    labels = [a for a in dataset["annotations"] if not a["iscrowd"]]
    by_split = Counter(split[annotation["category_id"]] for annotation in labels)
    return {
        "images": len(dataset["images"]),
        "narratives": num_narratives,
        "phrases": len(table),
        "phrases_of_a_class": int(np.count_nonzero(table["category_id"].to_numpy() != FREE)),
        "without_box": dict(Counter(filter(None, table["reason"].to_pylist()))),
        "labels": {**{name: by_split[name] for name in ("base", "novel")}, "all": len(labels)},
        "crowds": len(dataset["annotations"]) - len(labels),
        "labelled_images": len({annotation["image_id"] for annotation in labels}),
    }


def frequency_rows(table: pa.Table, categories: Sequence[Category]) -> list[dict]:
    """Return a row per text, the most frequent first: its class if it has one, and counts."""
    names = {category.id: category.name for category in categories} | {FREE: ""}
    keys = list(zip(table["phrase"].to_pylist(), table["category_id"].to_pylist(), strict=True))
    has_box = ~np.isnan(table["x0"].to_numpy())
    counts = Counter(keys)
    boxed = Counter(key for key, found in zip(keys, has_box, strict=True) if found)
    ordered = sorted(counts, key=lambda key: (-counts[key], key))
    rows = [
        {"phrase": key[0], "category": names[key[1]], "count": counts[key], "boxes": boxed[key]}
        for key in ordered
    ]
    return rows or [{"phrase": "", "category": "", "count": 0, "boxes": 0}]
