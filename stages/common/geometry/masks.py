"""Masks: bool (H, W), and COCO's run-length encoding, RLE: {"size": [H, W], "counts": str}."""

import numpy as np
from jaxtyping import Bool, Float32, Float64
from pycocotools import mask as coco_mask


def encode_mask(mask: Bool[np.ndarray, "H W"]) -> dict:
    """Return a mask as COCO RLE, ready for JSON."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def encode_window(
    window: Bool[np.ndarray, "h w"], corner_xy: tuple[int, int], image_hw: tuple[int, int]
) -> dict:
    """Return a mask that is False outside a window of the image as COCO RLE, ready for JSON.

    The cost depends on the size of the window only, not on that of the image.

    Args:
        window: the mask in the window, which lies inside the image.
        corner_xy: column and row of the window's first pixel.
        image_hw: height and width of the image.
    """
    height, width = image_hw
    left, top = corner_xy
    # Runs go down the columns; with a False row above and below, no run leaves its column.
    steps = np.diff(np.pad(window, ((1, 1), (0, 0))).astype(np.int8), axis=0).T
    begin, end = (
        (left + columns) * height + top + rows
        for columns, rows in (np.nonzero(steps == 1), np.nonzero(steps == -1))
    )
    apart = begin[1:] != end[:-1]  # a run may go on from one column's end to the next one's start
    bounds = np.stack(
        [begin[np.r_[True, apart][: len(begin)]], end[np.r_[apart, True][: len(end)]]]
    )
    counts = np.diff(bounds.T.ravel(), prepend=0, append=height * width).tolist()
    if len(counts) > 1 and counts[-1] == 0:
        counts.pop()
    rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, *image_hw)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def to_rle(segmentation: dict | list, image_hw: tuple[int, int]) -> dict:
    """Return any COCO segmentation (RLE, uncompressed RLE or polygons) as RLE, ready for JSON.

    Polygons with fewer than three points are dropped; without any other the mask is empty.

    Raises:
        ValueError: the RLE has another size than the image.
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

    pycocotools does not check this: it reads past the end of counts that are too short.

    Raises:
        ValueError: the RLE has another size, its counts are invalid, or its runs do not add up to
            the number of pixels.
    """
    if rle["size"] != list(image_hw):
        raise ValueError(f"RLE of size {rle['size']} for an image of size {list(image_hw)}")
    counts, pixels = rle["counts"], image_hw[0] * image_hw[1]
    runs = counts if isinstance(counts, list) else _read_runs(counts)
    if not all(type(run) is int and run >= 0 for run in runs) or sum(runs) != pixels:
        raise ValueError(
            f"RLE counts {str(counts)[:40]!r} are not runs that add up to"
            f" {image_hw[0]} × {image_hw[1]} pixels"
        )


def _read_runs(counts: str) -> list[int]:
    """Return the runs of compressed counts; an empty list for an invalid text.

    A run is a number in groups of five bits, lowest first; a group is the character with code
    "0" + group. Bit 32 says that another group follows; bit 16 of the last group, that the number
    is negative. From the fourth run on, the number is the difference to the last run but one.

    Source: cocoapi, maskApi.c, rleFrString.
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
        ValueError: the RLE has another size than the image.
    """
    return coco_mask.decode(to_rle(segmentation, image_hw)).astype(bool)


def mask_iou(mask: Bool[np.ndarray, "H W"], other: Bool[np.ndarray, "H W"]) -> float:
    """Return the intersection over union of two masks, 0 if both are empty."""
    union = np.count_nonzero(mask | other)
    return float(np.count_nonzero(mask & other) / union) if union else 0.0


def pairwise_mask_iou(segmentations: list[dict], others: list[dict]) -> Float64[np.ndarray, "R S"]:
    """Return the intersection over union of R and S masks in COCO RLE, without decoding them."""
    if not segmentations or not others:
        return np.zeros((len(segmentations), len(others)))
    return np.asarray(coco_mask.iou(segmentations, others, [0] * len(others)))


def mask_box(mask: Bool[np.ndarray, "H W"]) -> Float32[np.ndarray, "4"]:
    """Return the tight box of a mask, corners x0, y0, x1, y1; zeros if it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if rows.size == 0:
        return np.zeros(4, np.float32)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
