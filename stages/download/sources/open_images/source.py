"""Source `open_images`: images of Open Images V7, in files with the official names.

<folder>/train/, validation/ or test/     <ImageID>.jpg
<folder>/<part>-masks-<0..f>.zip          outlines as PNG, by the first digit of the ImageID
and the tables that `files` lists. The splits:

- test: the images of one official part that have a verified label of the 300 classes;
- train: the images of the official part train that have a Localized Narrative; each sentence of it
  is a caption;
- val: a fixed fraction of these, chosen by a hash of the ImageID. pairs: train, as captioned pairs.

Not every object is outlined: an object with only a box gets an empty mask. Boxes of groups are
crowds. An object has the class that people named; `ancestors` has the classes that include it.
Frame: pixels of the stored image.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool

from stages.common.formats.images import EncodedImage
from stages.common.formats.narratives import NarrativeReader
from stages.common.geometry.masks import encode_mask
from stages.download.examples import (
    CAPTIONED,
    Example,
    Listed,
    NarrativeFiles,
    Skipped,
    Source,
)
from stages.download.narrative_shards import tell_broken
from stages.download.params import OpenImagesParams
from stages.download.photographs import (
    check_ids,
    first_images,
    hashed_id,
    is_held_out,
    read_photograph,
    skip_unread,
)
from stages.download.sources.open_images.classes import open_images_categories
from stages.download.sources.open_images.files import (
    HIERARCHY,
    MASK_DIGITS,
    narratives,
    outlines,
    table,
)
from stages.download.sources.open_images.hierarchy import (
    read_ancestors,
    read_labels,
    verified_classes,
)
from stages.download.sources.open_images.index import BoxRow, Index, IndexWriter, MaskRow
from stages.download.sources.open_images.zip_members import Member, read_member

VAL = "open-images-val"
SAME_BOX = 0.002  # fraction of the image's side; the tables round boxes to six or nine digits


@dataclass(frozen=True)
class OpenImagesTask:
    """One image to read: `name` is its ImageID, `part` its official part."""

    split: str
    part: str
    image_id: int
    name: str


@dataclass(frozen=True)
class Annotators:
    """What `make_example` needs besides a task.

    Attributes:
        folder: has the official files.
        indices: part → file of the index of its tables.
        ancestors: category id → ids of all classes that include it.
    """

    folder: Path
    indices: Mapping[str, Path]
    ancestors: Mapping[int, Collection[int]]


def open_images_source(
    params: OpenImagesParams, scratch: Path, max_broken_fraction: float
) -> Source:
    """Return the source; reads the tables into an index in `scratch`, but no image.

    Args:
        params: its section.
        scratch: an empty folder.
        max_broken_fraction: of the narratives' lines, in 0..1, above which they are refused.

    Raises:
        FileNotFoundError: a table is missing.
        ValueError: a file has another format or lacks one of the 300 classes, an image is in train
            and in the test part, or no narrative is of a listed image.
    """
    folder = Path(params.folder).expanduser()
    categories = open_images_categories(params.division)
    by_name = {c.name: c.id for c in categories if c.split != "excluded"}
    category_ids = {label: by_name[name] for label, name in read_labels(folder, by_name).items()}
    ancestors = read_ancestors(folder / HIERARCHY, category_ids)

    def is_val(name: str) -> bool:
        return is_held_out(hashed_id(name), VAL, params.val_fraction)

    indices = {}
    spoken = NarrativeReader(max_broken_fraction)
    for part in ("train", params.test_part):
        indices[part] = scratch / f"{part}.sqlite"
        writer = IndexWriter(indices[part], category_ids)
        writer.add_images(folder / table("images", part))
        writer.add_boxes(folder / table("boxes", part))
        writer.add_masks(folder / table("masks", part))
        for digit in MASK_DIGITS:  # a subset of the images needs only some archives
            if (archive := folder / outlines(part, digit)).is_file():
                writer.add_archive(archive)
        writer.add_labels(
            folder / table("labels", part), is_val if part == "train" else lambda name: True
        )
        if part == "train":
            writer.add_captions([folder / name for name in narratives(part)], spoken)
        writer.finish()

    narrated = _names_with("caption", indices["train"])
    if not narrated:
        raise ValueError(
            f"{folder / narratives('train')[0]} and its like: none of {spoken.num_lines} narratives"
            f" is of an image of {table('images', 'train')}; fetch both again"
        )
    tested = _names_with("verified", indices[params.test_part])
    if both := set(narrated) & set(tested):
        raise ValueError(
            f"{folder}: {len(both)} images such as {min(both)} are listed in train and in"
            f" {params.test_part}; take all tables from one release"
        )
    check_ids([*narrated, *tested])
    kept = [name for name in narrated if not is_val(name)]
    chosen = {
        "pairs": ("train", kept),
        "train": ("train", kept),
        "val": ("train", [name for name in narrated if is_val(name)]),
        "test": (params.test_part, tested),
    }
    tasks = {
        split: first_images(
            (OpenImagesTask(split, part, hashed_id(name), name) for name in names),
            getattr(params.max_images, split),
        )
        for split, (part, names) in chosen.items()
    }
    annotators = Annotators(folder, indices, ancestors)
    make, look = partial(make_example, annotators), partial(look_up, annotators)
    traces = None
    if params.narratives:
        paths = [folder / name for name in narratives("train")]
        traces = NarrativeFiles(paths, hashed_id, narrated[0], "download.open_images.narratives")
    else:  # nobody else reads these lines
        tell_broken(spoken)
    return Source(categories, tasks, make, look, ancestors=ancestors, narratives=traces)


def _names_with(table: str, path: Path) -> list[str]:
    with closing(Index(path)) as index:
        return list(index.names_with(table))


@dataclass(frozen=True)
class _Rows:
    """The tables' rows of one image; without objects and labels for split `pairs`."""

    path: Path
    captions: tuple[str, ...]
    objects: tuple[tuple[BoxRow, MaskRow | None], ...] = ()
    labels: tuple[tuple[int, bool], ...] = ()


def _read_rows(annotators: Annotators, task: OpenImagesTask) -> _Rows | Skipped:
    path = annotators.folder / task.part / f"{task.name}.jpg"
    with closing(Index(annotators.indices[task.part])) as index:
        captions = tuple(index.captions(task.name)) if task.split in CAPTIONED else None
        if skipped := skip_unread(path, task.image_id, captions):
            return skipped
        if task.split == "pairs":
            return _Rows(path, captions or ())
        objects = tuple(join_objects(index.boxes(task.name), index.masks(task.name)))
        return _Rows(path, captions or (), objects, tuple(index.verified(task.name)))


def look_up(annotators: Annotators, task: OpenImagesTask) -> Listed | Skipped:
    """Return what the tables say about an image, or why it must be skipped.

    Raises:
        FileNotFoundError: one of its outlines is missing.
    """
    rows = _read_rows(annotators, task)
    if isinstance(rows, Skipped):
        return rows
    for _, mask in rows.objects:
        if mask is not None:
            _archived(annotators.folder, task.part, mask)
    return Listed(rows.path.name, rows.captions, tuple(box.category_id for box, _ in rows.objects))


def make_example(annotators: Annotators, task: OpenImagesTask) -> Example | Skipped:
    """Read one image and everything that is known about it; raises as `read_mask` does."""
    rows = _read_rows(annotators, task)
    if isinstance(rows, Skipped):
        return rows
    image = read_photograph(rows.path, task.image_id, rows.path.name)
    if isinstance(image, Skipped):
        return image
    if task.split == "pairs":
        return Example(image, rows.captions, ())
    annotations = tuple(
        _annotation(image, annotators.folder, task, *entry) for entry in rows.objects
    )
    named = {box.category_id for box, _ in rows.objects}
    verified = verified_classes(rows.labels, named, annotators.ancestors)
    return Example(image, rows.captions, annotations, verified)


def join_objects(
    boxes: list[BoxRow], masks: list[MaskRow]
) -> Iterator[tuple[BoxRow, MaskRow | None]]:
    """Yield each object once: its box, and its outline if it has one.

    The tables have no common key: an outline belongs to the box of its class with the same corners,
    up to `SAME_BOX`. An outline without such a box is an object with its own corners.
    """
    left = list(masks)
    for box in boxes:
        own = next((m for m in left if _same_object(box, m)), None)
        if own is not None:
            left.remove(own)
        yield box, own
    for mask in left:
        yield BoxRow(mask.category_id, mask.corners, False), mask


def _same_object(box: BoxRow, mask: MaskRow) -> bool:
    apart = max(abs(a - b) for a, b in zip(box.corners, mask.corners, strict=True))
    return box.category_id == mask.category_id and apart <= SAME_BOX


def _annotation(
    image: EncodedImage, folder: Path, task: OpenImagesTask, box: BoxRow, mask: MaskRow | None
) -> dict:
    image_hw = (image.height, image.width)
    x0, y0, x1, y1 = np.clip(box.corners, 0, 1) * np.array([*image_hw[::-1]] * 2)
    pixels = np.zeros(image_hw, bool)
    if mask is not None:
        pixels = read_mask(folder, task.part, mask, image_hw)
    segmentation = encode_mask(pixels)
    return {
        "image_id": task.image_id,
        "category_id": box.category_id,
        "bbox": [round(float(side), 2) for side in (x0, y0, x1 - x0, y1 - y0)],
        "area": int(pixels.sum()) or round(float((x1 - x0) * (y1 - y0)), 2),
        "iscrowd": int(box.group_of),
        "segmentation": segmentation,
    }


def read_mask(
    folder: Path, part: str, mask: MaskRow, image_hw: tuple[int, int]
) -> Bool[np.ndarray, "H W"]:
    """Return an outline, resized from its PNG, whose size may differ.

    Raises:
        FileNotFoundError: the archive, or the PNG in it, is missing.
        ValueError: the archive is damaged, or the PNG cannot be decoded.
    """
    path, member = _archived(folder, part, mask)
    encoded = np.frombuffer(read_member(path, member), np.uint8)
    stored = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE) if encoded.size else None
    if stored is None:
        raise ValueError(f"{path}: {mask.file_name} cannot be decoded as an image")
    height, width = image_hw
    return cv2.resize(stored, (width, height), interpolation=cv2.INTER_NEAREST) > 0


def _archived(folder: Path, part: str, mask: MaskRow) -> tuple[Path, Member]:
    path = folder / outlines(part, mask.file_name[0])
    if mask.member is None:
        raise FileNotFoundError(
            f"{path.absolute()}: it or its member {mask.file_name} is missing; fetch it again"
        )
    return path, mask.member
