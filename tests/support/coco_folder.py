"""A folder in the layout of COCO 2017, with a few generated images."""

import json
from pathlib import Path

from stages.download.params import CocoParams, MaxImages
from tests.support.images import noise_jpeg

CATEGORIES = [{"id": 1, "name": "person"}, {"id": 17, "name": "cat"}, {"id": 58, "name": "hot dog"}]
SQUARE = [[10.0, 5.0, 30.0, 5.0, 30.0, 25.0, 10.0, 25.0]]


def instance(number: int, image_id: int, segmentation=SQUARE, **changes) -> dict:
    whole = {"id": number, "image_id": image_id, "category_id": 17, "area": 400.0, "iscrowd": 0}
    return whole | {"bbox": [10, 5, 20, 20], "segmentation": segmentation} | changes


def write_coco(folder: Path) -> Path:
    """A COCO folder: train images 1-3 (colour, grey and narrow, no caption), test image 9."""
    sizes = {1: (40, 60), 2: (97, 31), 3: (40, 40), 9: (40, 60)}
    for image_id, (height, width) in sizes.items():
        path = folder / ("val2017" if image_id == 9 else "train2017") / f"{image_id:012d}.jpg"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(noise_jpeg(height, width, grey=image_id == 2))

    def entries(*ids: int) -> list[dict]:
        return [
            {"id": k, "file_name": f"{k:012d}.jpg", "height": sizes[k][0], "width": sizes[k][1]}
            for k in ids
        ]

    crowd = {"size": [97, 31], "counts": [31, 97, 97 * 31 - 128]}
    train = [instance(11, 1), instance(12, 2, crowd, iscrowd=1, bbox=[0, 0, 2, 97])]
    train.append(instance(13, 1, [[1, 2, 3, 4]]))
    captions = [{"image_id": 1, "caption": "Two cats\n and a hot dog. "}]
    captions += [{"image_id": 1, "caption": "sky"}, {"image_id": 2, "caption": "A man"}]
    contents = {
        "instances_train2017": (entries(3, 1, 2), train),
        "instances_val2017": (entries(9), [instance(21, 9)]),
        "captions_train2017": (entries(1, 2, 3), captions),
    }
    for name, (images, annotations) in contents.items():
        path = folder / f"annotations/{name}.json"
        path.parent.mkdir(exist_ok=True)
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        path.write_text(json.dumps(content))
    return folder


def coco_params(folder: Path, val_fraction: float = 0.0, **limits) -> CocoParams:
    limits = dict.fromkeys(("pairs", "train", "val", "test")) | limits
    return CocoParams(
        folder=str(folder),
        train_part="train2017",
        test_fraction=0.5,
        val_fraction=val_fraction,
        narratives=False,
        max_images=MaxImages(**limits),
    )
