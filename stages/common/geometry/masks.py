"""Masks: boolean (H, W), and the run-length encoding of COCO ({"size": [H, W], "counts": str})."""

import numpy as np
from jaxtyping import Bool, Float32, Float64
from pycocotools import mask as coco_mask


def encode_mask(mask: Bool[np.ndarray, "H W"]) -> dict:
    """Return COCO RLE, JSON-ready, of a mask."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def encode_window(
    window: Bool[np.ndarray, "h w"], corner_xy: tuple[int, int], image_hw: tuple[int, int]
) -> dict:
    """Return COCO RLE, JSON-ready, of a mask that is false outside a window of the image.

    Its cost is that of the window, however large the image.

    Args:
        window: inside the image.
        corner_xy: column and row of the window's first pixel.
        image_hw: the image's size.
    """
    height, width = image_hw
    left, top = corner_xy
    # Runs go down the columns; with a false row above and below, none leaves its column.
    steps = np.diff(np.pad(window, ((1, 1), (0, 0))).astype(np.int8), axis=0).T
    begin, end = (
        (left + columns) * height + top + rows
        for columns, rows in (np.nonzero(steps == 1), np.nonzero(steps == -1))
    )
    apart = begin[1:] != end[:-1]  # from the foot of a column to the head of the next is one run
    bounds = np.stack(
        [begin[np.r_[True, apart][: len(begin)]], end[np.r_[apart, True][: len(end)]]]
    )
    counts = np.diff(bounds.T.ravel(), prepend=0, append=height * width).tolist()
    if len(counts) > 1 and counts[-1] == 0:
        counts.pop()
    rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, *image_hw)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def to_rle(segmentation: dict | list, image_hw: tuple[int, int]) -> dict:
    """Return COCO RLE, JSON-ready, of any COCO segmentation: RLE, uncompressed RLE or polygons.

    Polygons of fewer than three points are left out; without any other the mask is empty.

    Raises:
        ValueError: an RLE of another size than the image.
    """
    height, width = image_hw
    if isinstance(segmentation, list):
        usable = [polygon for polygon in segmentation if len(polygon) >= 6]
        if not usable:
            return encode_mask(np.zeros(image_hw, bool))
        rle = coco_mask.merge(coco_mask.frPyObjects(usable, height, width))
    elif isinstance(segmentation["counts"], list):
        rle = coco_mask.frPyObjects(segmentation, height, width)
    else:
        rle = segmentation
    size, counts = [int(side) for side in rle["size"]], rle["counts"]
    if size != [height, width]:
        raise ValueError(f"RLE of size {size} for an image of size {[height, width]}")
    return {"size": size, "counts": counts if isinstance(counts, str) else counts.decode("ascii")}


def check_rle(rle: dict, image_hw: tuple[int, int]) -> None:
    """Check that an RLE, compressed or not, is a mask of an image of this size.

    pycocotools does not: it reads on behind the end of what is too short.

    Raises:
        ValueError: it is of another size, or its runs are none or do not add up to the size.
    """
    if list(rle["size"]) != list(image_hw):
        raise ValueError(f"RLE of size {rle['size']} for an image of size {list(image_hw)}")
    counts, pixels = rle["counts"], image_hw[0] * image_hw[1]
    runs = counts if isinstance(counts, list) else _read_runs(counts)
    if not all(type(run) is int and run >= 0 for run in runs) or sum(runs) != pixels:
        raise ValueError(
            f"RLE counts {str(counts)[:40]!r} are no runs that add up to"
            f" {image_hw[0]} × {image_hw[1]} pixels"
        )


def _read_runs(counts: str) -> list[int]:
    """Return the runs of compressed counts, none of what is no such text.

    Each is a number in groups of five bits, lowest first, as letters from "0" on; 32 says that a
    group follows, 16 of the last that the number is negative. From the fourth on it is the
    difference to the last but one. Source: cocoapi, maskApi.c, rleFrString.
    """
    runs: list[int] = []
    value = shift = 0
    for letter in counts if isinstance(counts, str) else "?":
        group = ord(letter) - ord("0")
        if not 0 <= group < 64:
            return []
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            value -= (group & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return [] if shift else runs


def decode_mask(segmentation: dict | list, image_hw: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """Return the mask of a COCO segmentation: RLE, uncompressed RLE or polygons.

    Raises:
        ValueError: an RLE of another size than the image.
    """
    return coco_mask.decode(to_rle(segmentation, image_hw)).astype(bool)


def mask_iou(mask: Bool[np.ndarray, "H W"], other: Bool[np.ndarray, "H W"]) -> float:
    """Return intersection over union of two masks, 0 if both are empty."""
    union = np.count_nonzero(mask | other)
    return float(np.count_nonzero(mask & other) / union) if union else 0.0


def pairwise_mask_iou(segmentations: list[dict], others: list[dict]) -> Float64[np.ndarray, "R S"]:
    """Return intersection over union of R and S masks in COCO RLE, not decoded."""
    if not segmentations or not others:
        return np.zeros((len(segmentations), len(others)))
    return np.asarray(coco_mask.iou(segmentations, others, [0] * len(others)))


def mask_box(mask: Bool[np.ndarray, "H W"]) -> Float32[np.ndarray, "4"]:
    """Return the tight box_xyxy of a mask, zeros if it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if rows.size == 0:
        return np.zeros(4, np.float32)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
