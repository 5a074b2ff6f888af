"""A folder in the exact layout of Open Images, with a few generated images."""

import csv
import json
import zipfile
from pathlib import Path

import cv2
import numpy as np

from stages.download.params import MaxImages, OpenImagesParams
from stages.download.sources.open_images.classes import BASE, NOVEL
from stages.download.sources.open_images.files import (
    CLASSES,
    HIERARCHY,
    MASK_DIGITS,
    NARRATIVE_FILES,
    narratives,
    table,
)
from tests.support.images import noise

HW = (40, 60)
NAMES = (*BASE, *NOVEL)
LABELS = {name: f"/m/{number:04x}" for number, name in enumerate(NAMES, 1)}
TRAIN = ("0a00000000000001", "3b00000000000002", "fc00000000000003", "0d00000000000004")
TEST = ("a000000000000011", "0b00000000000012", "c000000000000013")
CAT = (0.1, 0.5, 0.125, 0.625)  # XMin, XMax, YMin, YMax: columns 6 to 30, rows 5 to 25
BEAR = (0.5, 1.0, 0.25, 0.75)
CROWD = (0.0, 1.0, 0.0, 1.0)


def photograph(name: str) -> bytes:
    return cv2.imencode(".jpg", noise(int(name, 16) % 997, *HW, 3))[1].tobytes()


def outline(corners: tuple) -> bytes:
    """Return a PNG at twice the image's size, because those of Open Images differ in size too."""
    pixels = np.zeros((2 * HW[0], 2 * HW[1]), np.uint8)
    x0, x1, y0, y1 = corners
    height, width = pixels.shape
    pixels[round(y0 * height) : round(y1 * height), round(x0 * width) : round(x1 * width)] = 255
    return cv2.imencode(".png", pixels)[1].tobytes()


def write_table(path: Path, header: str, rows: list[tuple]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        writer.writerows(rows)


def boxes(*rows: tuple) -> list[tuple]:
    """Return rows of the boxes table: image, class, corners, group."""
    return [
        (name, "xclick", LABELS.get(label, label), 1, *corners, 0, 0, group, 0, 0)
        for name, label, corners, group in rows
    ]


def write_part(folder: Path, part: str, names: tuple, box_rows: list, masks: list, labels: list):
    """Write the tables, archives and images of a part."""
    rows = [(name, part, "http://…", 0.0) for name in names]
    write_table(folder / table("images", part), "ImageID,Subset,OriginalURL,Rotation", rows)
    header = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax"
    header += ",IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
    write_table(folder / table("boxes", part), header, boxes(*box_rows))
    header = "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"
    rows, archives = [], {digit: [] for digit in MASK_DIGITS}
    for number, (name, label, corners) in enumerate(masks):
        path = f"{name}_m{LABELS[label][3:]}_{number:08x}.png"
        shown = [f"{side + 0.0004:.6f}" for side in corners]  # rounded otherwise than the boxes
        rows.append((path, name, LABELS[label], f"{number:08x}", *shown, 0.9, "0.5 0.5 1"))
        archives[path[0]].append((path, outline(corners)))
    write_table(folder / table("masks", part), header, rows)
    for digit, members in archives.items():
        with zipfile.ZipFile(folder / f"{part}-masks-{digit}.zip", "w") as archive:
            for path, encoded in members:
                archive.writestr(path, encoded)
    rows = [(name, "verification", LABELS[label], sure) for name, label, sure in labels]
    write_table(folder / table("labels", part), "ImageID,Source,LabelName,Confidence", rows)
    (folder / part).mkdir()
    for name in names:
        (folder / part / f"{name}.jpg").write_bytes(photograph(name))


def write_open_images(folder: Path) -> Path:
    """Write four training images, three of them narrated, and three validation images."""
    folder.mkdir(parents=True)
    lines = [f"{label},{name}" for name, label in LABELS.items()]
    (folder / CLASSES).write_text("\n".join(lines) + "\n")
    bears = [{"LabelName": LABELS[name]} for name in ("Brown bear", "Polar bear")]
    bear = {"LabelName": LABELS["Bear"], "Subcategory": bears}
    cat = {"LabelName": LABELS["Cat"], "Part": [{"LabelName": LABELS["Human ear"]}]}
    carnivore = {"LabelName": LABELS["Carnivore"], "Subcategory": [bear, cat]}
    tree = {
        "LabelName": "/m/0bl9f",
        "Subcategory": [{"LabelName": "/m/0jbk", "Subcategory": [carnivore]}],
    }
    (folder / HIERARCHY).write_text(json.dumps(tree))
    first, second, third, _ = TRAIN
    write_part(
        folder,
        "train",
        TRAIN,
        [
            (first, "Cat", CAT, 0),
            (first, "Cat", BEAR, 0),  # nobody outlined it
            (second, "Brown bear", BEAR, 0),
            (second, "Cat", CROWD, 1),
            (second, "/m/other", CAT, 0),
        ],
        [(first, "Cat", CAT), (second, "Brown bear", BEAR), (third, "Alpaca", CAT)],
        [(first, "Cat", 1), (third, "Alpaca", 1)],
    )
    one, two, _ = TEST
    write_part(
        folder,
        "validation",
        TEST,
        [(one, "Polar bear", BEAR, 0), (one, "Cat", CAT, 0)],
        [(one, "Polar bear", BEAR), (one, "Cat", CAT)],
        [(one, "Polar bear", 1), (two, "Bear", 0), (two, "Alpaca", 0)],
    )
    told = [(first, "Two cats  and\na bear."), (second, "a brown bear"), (first, "A cat")]
    told += [(third, "an alpaca"), ("eeee000000000099", "an image of no list")]
    entries = [
        {"dataset_id": "open_images", "image_id": name, "annotator_id": 1, "caption": text}
        for name, text in told
    ]
    for number, name in enumerate(narratives("train")):
        own = entries[number::NARRATIVE_FILES]
        (folder / name).write_text("".join(json.dumps(entry) + "\n" for entry in own))
    return folder


def open_images_params(folder: Path, **limits) -> OpenImagesParams:
    limits = dict.fromkeys(("pairs", "train", "val", "test")) | limits
    return OpenImagesParams(
        folder=str(folder),
        test_part="validation",
        division="frequency",
        val_fraction=0.0,
        narratives=False,
        max_images=MaxImages(**limits),
    )
