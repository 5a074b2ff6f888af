"""Selective search of a shard of pictures, by several processes, in the order of the pictures.

N images, R proposals of all of them; boxes x0, y0, x1, y1 in pixels.
"""

import json
from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from stages.common.formats.images import Picture
from stages.common.formats.tables import boxes_table
from stages.common.runtime.parallel import map_in_order
from stages.models.proposals.selective_search import SearchSettings, selective_search


class Found(NamedTuple):
    """The proposals of one picture; `is_fallback` if they are just the whole picture."""

    image_id: int
    boxes_xyxy: np.ndarray
    is_fallback: bool


def search_picture(settings: SearchSettings, seed: int, picture: Picture) -> Found:
    """Return the proposals float32 (R, 4), R >= 1, of one picture.

    A picture without a proposal gets one box, the whole picture, so that every later stage has
    something to score and no picture drops out unseen; the shard's report names these pictures.
    """
    boxes_xyxy = selective_search(picture.decode(), settings, seed, picture.image_id)
    if len(boxes_xyxy):
        return Found(picture.image_id, boxes_xyxy, False)
    whole = np.array([[0, 0, picture.width, picture.height]], np.float32)
    return Found(picture.image_id, whole, True)


def search_pictures(
    pictures: Iterable[Picture], settings: SearchSettings, seed: int, workers: int
) -> Iterator[Found]:
    """Yield the proposals of each picture in their order, found by `workers` processes.

    Processes, not threads: the order of proposals comes from C's global random state.
    """
    return map_in_order(partial(search_picture, settings, seed), pictures, workers, chunk_size=8)


def proposal_table(found: Iterable[Found]) -> tuple[pa.Table, dict]:
    """Return the shard's table, and its report, which the table also has in its metadata."""
    pieces = list(found)
    lengths = [len(piece.boxes_xyxy) for piece in pieces]
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(p.boxes_xyxy for p in pieces)])
    image_ids = np.repeat(np.array([piece.image_id for piece in pieces], np.int64), lengths)
    report = {
        "images": len(pieces),
        "proposals": len(boxes),
        "whole_image_instead": [piece.image_id for piece in pieces if piece.is_fallback],
    }
    table = boxes_table(image_ids, boxes)
    return table.replace_schema_metadata({"facts": json.dumps(report, sort_keys=True)}), report
