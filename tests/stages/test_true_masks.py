"""true_masks: the mask is the fitting object's in the box; what it cannot mend it leaves alone."""

import numpy as np

from stages.common.masks import decode_mask, encode_mask
from stages.true_masks.replace import replace_masks

IMAGE_HW = (20, 30)


def annotation(category_id: int, left: int, top: int, right: int, bottom: int, **more) -> dict:
    pixels = np.zeros(IMAGE_HW, bool)
    pixels[top:bottom, left:right] = True
    return {
        "bbox": [left, top, right - left, bottom - top],
        "category_id": category_id,
        "iscrowd": 0,
        "segmentation": encode_mask(pixels),
        "area": int(pixels.sum()),
        **more,
    }


def test_a_label_gets_the_mask_of_the_object_that_its_box_fits_best_cut_to_the_box():
    label = annotation(1, 4, 4, 14, 14, score=3.0)
    objects = [annotation(1, 6, 6, 18, 12), annotation(1, 0, 0, 5, 5), annotation(2, 4, 4, 14, 14)]
    (replaced,) = replace_masks([label], objects, IMAGE_HW)
    expected = np.zeros(IMAGE_HW, bool)
    expected[6:12, 6:14] = True
    assert np.array_equal(decode_mask(replaced["segmentation"], IMAGE_HW), expected)
    assert replaced["area"] == 48
    assert {k: v for k, v in replaced.items() if k not in ("segmentation", "area")} == {
        k: v for k, v in label.items() if k not in ("segmentation", "area")
    }


def test_labels_of_absent_or_distant_objects_and_of_crowds_stay():
    labels = [annotation(1, 4, 4, 14, 14), annotation(3, 4, 4, 14, 14)]
    objects = [annotation(1, 20, 0, 30, 3), annotation(3, 4, 4, 12, 12, iscrowd=1)]
    assert replace_masks(labels, objects, IMAGE_HW) == labels
    assert replace_masks(labels, [], IMAGE_HW) == labels
