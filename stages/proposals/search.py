"""Selective search on the images of a shard, in several processes; results keep the images' order.

Shape legend: R proposals of one image; boxes x0, y0, x1, y1 in pixels of the image.
"""

import json
from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from stages.common.formats.images import EncodedImage
from stages.common.formats.tables import boxes_table
from stages.common.runtime.parallel import map_in_order
from stages.models.proposals.selective_search import SearchSettings, selective_search


class Found(NamedTuple):
    """The proposals of one image, float32 (R, 4); `is_fallback`: the whole image stands in."""

    image_id: int
    boxes_xyxy: np.ndarray
    is_fallback: bool


def search_image(settings: SearchSettings, seed: int, image: EncodedImage) -> Found:
    """Return the proposals of one image, R >= 1.

    An image without proposals gets the whole image as its only box, so that every later stage has a
    box to score. The shard's report lists these images.
    """
    boxes_xyxy = selective_search(image.decode(), settings, seed, image.image_id)
    if len(boxes_xyxy):
        return Found(image.image_id, boxes_xyxy, False)
    whole = np.array([[0, 0, image.width, image.height]], np.float32)
    return Found(image.image_id, whole, True)


def search_images(
    images: Iterable[EncodedImage], settings: SearchSettings, seed: int, workers: int
) -> Iterator[Found]:
    """Yield the proposals of each image in order, computed by `workers` processes.

    Threads would not do: the order of proposals comes from C's global random state.
    """
    return map_in_order(partial(search_image, settings, seed), images, workers, chunk_size=8)


def proposal_table(found: Iterable[Found]) -> tuple[pa.Table, dict]:
    """Return the shard's table and its report; the table's metadata holds the report too."""
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
