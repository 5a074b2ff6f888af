"""pseudo_labels: what is kept, what is reported, and when the stage refuses."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.common.formats.categories import Category
from stages.common.formats.images import EncodedImage, write_images
from stages.common.geometry.masks import encode_mask
from stages.common.runtime.storage import read_json, write_json, write_tensors
from stages.pseudo_labels.merge import (
    CONSTANT,
    SMALL,
    UNSURE,
    check_masks,
    make_dataset,
    split_masks,
)
from stages.pseudo_labels.params import PseudoLabelsParams
from stages.pseudo_labels.summary import (
    add_facts,
    check_targets,
    check_yield,
    label_metrics,
    make_report,
)
from tests.support.boxes import box_mask
from tests.support.run_module import run_module

CATEGORIES = [
    Category(1, "cup", "base", ("cup",)),
    Category(2, "fish", "novel", ("fish",)),
    Category(3, "car", "novel", ("car",)),
]
IMAGES = [{"id": i, "file_name": f"{i}.jpg", "height": 20, "width": 30} for i in (1, 2, 3, 4)]


FACTS = {"images": 4, "images_without_target": 1}


def params(min_area=10, keep_fraction=1.0, min_labelled_fraction=0.5):
    return PseudoLabelsParams(
        min_area=min_area,
        keep_fraction=keep_fraction,
        max_untargeted_fraction=0.5,
        min_labelled_fraction=min_labelled_fraction,
    )


def make_mask(image_id, category_id, score=1.0, side=5):
    pixels = box_mask((3, 2, 3 + side, 2 + side), (20, 30))
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [2.0, 1.0, 8.0, 8.0],
        "score": score,
        "area": 1,  # wrong on purpose: the stage measures the mask itself
        "segmentation": encode_mask(pixels),
        "iscrowd": 0,
    }


def run(masks, settings, *facts):
    check_masks(masks, IMAGES, CATEGORIES)
    kept, dropped = split_masks(masks, settings)
    dataset = make_dataset(kept, IMAGES, CATEGORIES)
    report = make_report(dataset, dropped, CATEGORIES, add_facts(facts or [FACTS]))
    return dataset, report, label_metrics(dataset, report)


def test_yield_and_report_of_a_small_case():
    masks = [make_mask(3, 1), make_mask(1, 2, side=3), make_mask(1, 1, score=2.0)]
    dataset, report, metrics = run(masks, params())
    assert [(a["id"], a["image_id"], a["category_id"]) for a in dataset["annotations"]] == [
        (1, 1, 1),
        (2, 3, 1),
    ]
    assert dataset["annotations"][0]["area"] == 25
    assert dataset["annotations"][0]["bbox"] == [2.0, 1.0, 8.0, 8.0]
    assert dataset["annotations"][0]["iscrowd"] == 0
    assert dataset["categories"][1] == {"id": 2, "name": "fish", "split": "novel"}
    assert report["labels_per_category"] == {"cup": 2, "fish": 0, "car": 0}
    assert report["categories_without_labels"] == {"base": [], "novel": ["fish", "car"]}
    assert report["images_without_labels"] == [2, 4]
    assert report["dropped"] == [
        {"image_id": 1, "category": "fish", "area": 9, "score": 1.0, "reason": SMALL}
    ]
    assert metrics == {
        "images": 4,
        "labelled_images": 2,
        "labelled_fraction": 0.5,
        "untargeted_images": 1,
        "targets": 3,
        "labels": 2,
        "labels_per_image": 0.5,
        "dropped": {"too_small": 1, "low_score": 0, "constant_map": 0},
        "base": {"labels": 2, "categories_without_labels": 0},
        "novel": {"labels": 0, "categories_without_labels": 2},
    }


def test_many_masks_at_once():
    masks = [make_mask(number, 1) for number in range(300)]  # pycocotools' lists end at 255
    assert len(split_masks(masks, params())[0]) == 300


def test_keep_fraction_counts_per_class_and_rounds_up():
    masks = [make_mask(i, 1, score=float(i)) for i in (1, 2, 3)] + [make_mask(1, 2, score=0.1)]
    kept, dropped = split_masks(masks, params(keep_fraction=0.5))
    assert [(m["image_id"], m["category_id"]) for m in kept] == [(1, 2), (2, 1), (3, 1)]
    assert [(m["image_id"], m["reason"]) for m in dropped] == [(1, UNSURE)]


@given(st.permutations(range(8)), st.floats(0.1, 1.0))
def test_order_of_masks_changes_nothing(order, fraction):
    masks = [make_mask(i % 4 + 1, i // 4 + 1, score=float(i % 3)) for i in range(8)]
    settings = params(keep_fraction=fraction)
    expected = split_masks(masks, settings)
    assert split_masks([masks[i] for i in order], settings) == expected
    assert len(expected[0]) + len(expected[1]) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 9}, "image_id 9, category_id 1: no such image"),
        ({"category_id": 7}, "category_id 7: not a base or novel class"),
        ({"segmentation": encode_mask(np.ones((4, 5), bool))}, r"size \[4, 5\], image of size"),
        ({"image_id": 2}, "image_id 2, category_id 1: two masks"),
    ],
)
def test_masks_that_fit_nothing_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_masks([make_mask(2, 1), {**make_mask(1, 1), **change}], IMAGES, CATEGORIES)


def test_too_few_labels_name_the_limit():
    *_, metrics = run([make_mask(1, 1)], params())
    with pytest.raises(ValueError, match=r"only 1 of 4 images .*min_labelled_fraction = 50.0%"):
        check_yield(metrics, 0.5)
    *_, nothing = run([], params())
    with pytest.raises(ValueError, match="only 0 of 4"):
        check_yield(nothing, 0.0)


def test_constant_maps_are_counted_and_named():
    one = {"images": 1, "images_without_target": 1, "mentions_cut_off": 2}
    two = {"images": 3, "images_without_target": 0}
    one["constant_maps"] = [{"image_id": 4, "category_id": 2}]
    two["constant_maps"] = [{"image_id": k, "category_id": 1} for k in (3, 2)]
    _, report, metrics = run([make_mask(1, 1), make_mask(1, 2, side=3)], params(), one, two)
    assert report["activation"] == {
        "images": 4,
        "images_without_target": 1,
        "mentions_cut_off": 2,
        "constant_maps": 3,
    }
    assert report["dropped"][1:] == [
        {"image_id": 2, "category": "cup", "reason": CONSTANT},
        {"image_id": 3, "category": "cup", "reason": CONSTANT},
        {"image_id": 4, "category": "fish", "reason": CONSTANT},
    ]
    assert metrics["dropped"] == {"too_small": 1, "low_score": 0, "constant_map": 3}
    assert metrics["targets"] == 5


def test_images_without_a_target_are_counted_over_all_shards():
    large = {"images": 95, "images_without_target": 5}
    small = {"images": 5, "images_without_target": 5}  # all of it
    *_, report, _ = run([], params(), large, small, {"images": 0, "images_without_target": 0})
    check_targets(report, 0.1)
    message = r"10 of 100 training images have no target \(10\.0%\).*max_untargeted_fraction = 9"
    with pytest.raises(ValueError, match=message):
        check_targets(report, 0.09)


def write_inputs(folder, shards, without_target=0):
    write_json(
        folder / "data/download/categories.json",
        [{"id": c.id, "name": c.name, "split": c.split, "forms": [*c.forms]} for c in CATEGORIES],
    )
    for shard, image_ids in shards.items():
        images = [EncodedImage(i, f"{i}.jpg", 20, 30, b"never decoded") for i in image_ids]
        write_images(folder / f"data/download/images/train/{shard}.parquet", images)
        write_json(folder / f"data/pseudo_masks/{shard}.json", [make_mask(i, 1) for i in image_ids])
        facts = {"images": len(image_ids), "images_without_target": without_target}
        write_tensors(folder / f"data/activation/{shard}.safetensors", {}, facts)
    (folder / "params.yaml").write_text(
        f"seed: 0\nshards: {sorted(shards)}\n"
        "pseudo_labels: {min_area: 25, keep_fraction: 1.0, max_untargeted_fraction: 0.5,"
        " min_labelled_fraction: 0.3}\n"
    )


def run_stage(folder, monkeypatch):
    monkeypatch.chdir(folder)
    run_module("stages.pseudo_labels")
    return (folder / "data/pseudo_labels/pseudo_annotations.json").read_bytes()


def test_stage_merges_shards_to_the_same_bytes_however_they_are_cut(tmp_path, monkeypatch, capsys):
    write_inputs(tmp_path / "two", {0: [1, 3], 1: [2, 4]})
    write_inputs(tmp_path / "one", {0: [1, 2, 3, 4]})
    two = run_stage(tmp_path / "two", monkeypatch)
    assert two == run_stage(tmp_path / "one", monkeypatch)
    assert len(json.loads(two)["annotations"]) == 4
    assert "no pseudo-label of novel fish, car" in capsys.readouterr().out


def test_stage_says_which_shard_is_missing(tmp_path, monkeypatch):
    write_inputs(tmp_path, {0: [1, 3], 1: [2, 4]})
    (tmp_path / "data/pseudo_masks/1.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"data/pseudo_masks/1.json: no such file; `dvc repro`"
    ):
        run_stage(tmp_path, monkeypatch)


def test_the_report_is_there_when_too_many_images_have_no_target(tmp_path, monkeypatch):
    write_inputs(tmp_path, {0: [1, 3], 1: [2, 4]}, without_target=2)
    with pytest.raises(ValueError, match=r"4 of 4 training images have no target \(100\.0%\)"):
        run_stage(tmp_path, monkeypatch)
    report = read_json(tmp_path / "data/pseudo_labels/report.json")
    assert report["activation"]["images_without_target"] == 4
