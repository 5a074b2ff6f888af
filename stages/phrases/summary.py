"""The phrases of all narratives: labels in COCO's form, a table with their lineage, and counts."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from stages.common.formats.categories import Category
from stages.common.formats.tables import boxes_table
from stages.common.geometry.boxes import box_area, xyxy_to_xywh
from stages.phrases.narrated import FREE, Narrated

DIGITS = 2  # of a pixel, in the labels


def make_dataset(
    phrases: Sequence[Narrated],
    images: list[dict],
    categories: Sequence[Category],
    several: str,
) -> dict:
    """Return COCO's instances form of the phrases that have a class and a box; there are no masks.

    Annotations also have `phrase`, their row in the table. A box around several objects is a crowd
    if `several` says so.
    """
    annotations: list[dict] = []
    for row, phrase in enumerate(phrases):
        box = phrase.located.box_xyxy
        if phrase.category_id == FREE or box is None:
            continue
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": phrase.image_id,
                "category_id": phrase.category_id,
                "bbox": [round(float(side), DIGITS) for side in xyxy_to_xywh(box[None])[0]],
                "area": round(float(box_area(box[None])[0]), DIGITS),
                "iscrowd": int(phrase.several and several == "crowd"),
                "phrase": row,
            }
        )
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": c.id, "name": c.name, "split": c.split} for c in categories],
    }


def make_table(phrases: Sequence[Narrated]) -> pa.Table:
    """Return a row per phrase: text, class, sentence, characters, seconds, points and box.

    `first_point` and `points` count in the narrative's trace in order of time. Without a box the
    corners are not a number, and `reason` says why.
    """
    none = np.full(4, np.nan, np.float32)
    boxes = [none if p.located.box_xyxy is None else p.located.box_xyxy for p in phrases]
    windows = np.array([p.located.window for p in phrases], np.float64).reshape(-1, 2)
    return boxes_table(
        np.array([p.image_id for p in phrases], np.int64),
        np.array(boxes, np.float32).reshape(-1, 4),
        phrase=pa.array([p.text for p in phrases], pa.string()),
        category_id=pa.array([p.category_id for p in phrases], pa.int64()),
        several=pa.array([p.several for p in phrases], pa.bool_()),
        sentence=pa.array([p.sentence for p in phrases], pa.string()),
        start=pa.array([p.start for p in phrases], pa.int64()),
        end=pa.array([p.end for p in phrases], pa.int64()),
        seconds_from=pa.array(windows[:, 0]),
        seconds_to=pa.array(windows[:, 1]),
        first_point=pa.array([p.located.first for p in phrases], pa.int64()),
        points=pa.array([p.located.num_points for p in phrases], pa.int64()),
        reason=pa.array([p.located.reason for p in phrases], pa.string()),
    )


def make_metrics(
    phrases: Sequence[Narrated],
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
        "phrases": len(phrases),
        "phrases_of_a_class": sum(p.category_id != FREE for p in phrases),
        "without_box": dict(Counter(p.located.reason for p in phrases if p.located.reason)),
        "labels": {**{name: by_split[name] for name in ("base", "novel")}, "all": len(labels)},
        "crowds": len(dataset["annotations"]) - len(labels),
        "labelled_images": len({annotation["image_id"] for annotation in labels}),
    }


def frequency_rows(phrases: Sequence[Narrated], categories: Sequence[Category]) -> list[dict]:
    """Return a row per text, the most frequent first: its class if it has one, and counts."""
    names = {category.id: category.name for category in categories} | {FREE: ""}
    counts = Counter((p.text, p.category_id) for p in phrases)
    boxed = Counter((p.text, p.category_id) for p in phrases if p.located.box_xyxy is not None)
    ordered = sorted(counts, key=lambda key: (-counts[key], key))
    rows = [
        {"phrase": key[0], "category": names[key[1]], "count": counts[key], "boxes": boxed[key]}
        for key in ordered
    ]
    return rows or [{"phrase": "", "category": "", "count": 0, "boxes": 0}]
