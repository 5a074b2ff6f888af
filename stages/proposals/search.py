"""Selective search of a shard of pictures, by several processes, in the order of the pictures.

N images, R proposals of all of them; boxes x0, y0, x1, y1 in pixels.
"""

import json
import multiprocessing
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from stages.common.images import Picture
from stages.common.selective_search import SearchSettings, selective_search

PICTURES_PER_WORKER = 32  # how many are in memory at once


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

    Processes, not threads: the order of proposals comes from C's global random state. They are
    forked where that is safe, before any picture is read, because a fresh interpreter would spend
    seconds on imports that this one has done.
    """
    task = partial(search_picture, settings, seed)
    if workers == 1:
        yield from map(task, pictures)
        return
    start = "fork" if sys.platform == "linux" else "spawn"
    with multiprocessing.get_context(start).Pool(workers) as pool:
        source = iter(pictures)
        while batch := list(islice(source, PICTURES_PER_WORKER * workers)):
            yield from pool.imap(task, batch)


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
    columns = {name: boxes[:, index] for index, name in enumerate(("x0", "y0", "x1", "y1"))}
    table = pa.table({"image_id": image_ids, **columns})
    return table.replace_schema_metadata({"facts": json.dumps(report, sort_keys=True)}), report
