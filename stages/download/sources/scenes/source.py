"""Source `scenes`: drawn images, each of which depends on (seed, split, image_id) alone."""

from dataclasses import dataclass
from functools import partial

import cv2

from stages.common.formats.images import EncodedImage
from stages.common.geometry.masks import encode_mask, mask_box
from stages.common.runtime.seeding import numpy_generator
from stages.download.examples import SPLITS, Example, Source
from stages.download.params import ScenesParams
from stages.download.sources.scenes.captions import write_caption
from stages.download.sources.scenes.classes import scene_categories
from stages.download.sources.scenes.draw import Scene, draw_scene, pair_recipe, scene_recipe
from stages.download.sources.scenes.narratives import write_narrative

# Colour at full resolution: small parts differ by colour, and with JPEG's usual half resolution the
# vision-language model hardly learns from images of 64 pixels (loss 3.34 against 3.17).
FULL_COLOUR = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)


@dataclass(frozen=True)
class SceneTask:
    """Image `image_id` of a split, counted from 0."""

    split: str
    image_id: int


def scene_source(params: ScenesParams, seed: int) -> Source:
    """Return the source; image k of a split does not depend on the number of images."""
    tasks = {
        split: [SceneTask(split, index) for index in range(getattr(params.num_images, split))]
        for split in SPLITS
    }
    return Source(
        tuple(scene_categories(params.class_split)), tasks, partial(make_example, params, seed)
    )


def make_example(params: ScenesParams, seed: int, task: SceneTask) -> Example:
    """Draw one scene and write its captions, and its narrative in split `train`.

    Scene, captions and narrative have separate generators, so that params of captions and
    narratives never change an image.
    """
    recipe = scene_recipe(params.scene_side)
    if task.split == "pairs":
        recipe = pair_recipe(params.pair_side, params.scene_side)
    keys = (task.split, task.image_id)
    scene = draw_scene(recipe, numpy_generator(seed, "scene", *keys))
    captions = [
        write_caption(
            scene.classes,
            scene.colours,
            params.synonym_fraction,
            params.omission_fraction,
            numpy_generator(seed, "caption", *keys, number),
        )
        for number in range(params.captions_per_image)
    ]
    height, width = scene.image.shape[:2]
    image = EncodedImage(
        task.image_id,
        f"{task.split}_{task.image_id:06d}.jpg",
        height,
        width,
        _encode(scene, params.jpeg_quality),
    )
    narrative = None
    if task.split == "train":
        random = numpy_generator(seed, "narrative", *keys)
        narrative = write_narrative(
            scene, task.image_id, params.annotator, params.synonym_fraction, random
        )
    annotations = tuple(_annotations(scene, task.image_id))
    return Example(image, tuple(captions), annotations, narrative=narrative)


def _encode(scene: Scene, quality: int) -> bytes:
    done, encoded = cv2.imencode(
        ".jpg", scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality, *FULL_COLOUR]
    )
    assert done, "OpenCV could not write a JPEG"
    return encoded.tobytes()


def _annotations(scene: Scene, image_id: int) -> list[dict]:
    """Return COCO annotations of the visible parts, in the order of drawing."""
    annotations = []
    for mask, kind in zip(scene.masks, scene.classes, strict=True):
        left, top, right, bottom = map(float, mask_box(mask))
        annotations.append(
            {
                "image_id": image_id,
                "category_id": kind + 1,
                "bbox": [left, top, right - left, bottom - top],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": encode_mask(mask),
            }
        )
    return annotations
