import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stages.common.formats.captions import MentionFinder
from stages.common.formats.images import read_images
from stages.common.geometry.masks import decode_mask, encode_mask
from stages.download.__main__ import main
from stages.download.examples import (
    NEITHER,
    NO_AREA,
    NO_IMAGE,
    NO_MASK,
    WRONG_BOX,
    AnnotationFile,
    Example,
    Skipped,
)
from stages.download.params import CocoParams, DownloadParams
from stages.download.photographs import is_held_out
from stages.download.report import empty_reports, find_problems, notices, summarise
from stages.download.sources.coco.classes import BASE, EXCLUDED, NOVEL, coco_category
from stages.download.sources.coco.source import VAL, coco_source
from tests.support.coco_folder import CATEGORIES, SQUARE, coco_params, instance, write_coco
from tests.support.download_params import write_download_params
from tests.support.images import noise_jpeg
from tests.support.images_folder import phone_jpeg
from tests.support.photographs import coco_mini

REPOSITORY = Path(__file__).parents[4]


def make_all(params: CocoParams, split: str) -> list[Example | Skipped]:
    source = coco_source(params)
    return [source.make(task) for task in source.tasks[split]]


def reason(outcomes: list, image_id: int) -> str:
    return next(o.reason for o in outcomes if isinstance(o, Skipped) and o.image_id == image_id)


def test_split_is_the_published_one():
    assert (len(BASE), len(NOVEL), len(EXCLUDED)) == (48, 17, 15)
    assert len({*BASE, *NOVEL, *EXCLUDED}) == 80
    assert {"airplane", "scissors", "couch"} <= set(NOVEL)
    categories = [coco_category(k, name) for k, name in enumerate([*BASE, *NOVEL, *EXCLUDED])]
    MentionFinder(categories)  # no word means two classes
    assert categories[0].split == "base" and "people" in categories[0].forms
    with pytest.raises(ValueError, match=r"class 'dragon' is none of COCO's 80; for your own clas"):
        coco_category(1, "dragon")
    with pytest.raises(
        ValueError, match=r"class 'Hotdog' is none .*; write 'hot dog', or for your"
    ):
        coco_category(1, "Hotdog")


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("Two women eat hot-dogs.", {"person"}),  # an excluded class, but no dog
        ("A kitten beside a teddy bear", {"cat"}),  # and no bear
        ("sofas, knives and doughnuts", {"couch", "knife", "donut"}),
        ("things in a truck bed", {"truck"}),
        ("a microwave oven", {"microwave"}),
        ("a bike on a ski slope", set()),
    ],
)
def test_words_people_use(caption, expected):
    names = [*BASE, *NOVEL, *EXCLUDED]
    finder = MentionFinder([coco_category(k, name) for k, name in enumerate(names)])
    assert {names[k] for k in finder.classes([caption])} == expected


def test_ground_truth_keeps_polygons_crowds_and_ids(tmp_path):
    first, second, _ = make_all(coco_params(write_coco(tmp_path)), "train")
    square, specks = first.annotations
    assert (square["id"], square["bbox"], square["area"]) == (11, [10.0, 5.0, 20.0, 20.0], 400.0)
    mask = decode_mask(square["segmentation"], (40, 60))
    assert mask.sum() == 400 and mask[5:25, 10:30].all()
    assert not decode_mask(specks["segmentation"], (40, 60)).any()  # fewer than three points
    (crowd,) = second.annotations
    assert crowd["iscrowd"] == 1 and isinstance(crowd["segmentation"]["counts"], str)
    column_major = decode_mask(crowd["segmentation"], (97, 31)).T.ravel()
    assert column_major.sum() == 97 and column_major[31:128].all()


def test_looking_up_tells_what_making_tells(tmp_path):
    source = coco_source(coco_params(write_coco(tmp_path)))
    (tmp_path / "val2017/000000000009.jpg").unlink()
    for tasks in source.tasks.values():
        found = [source.look_up(task) for task in tasks]
        assert found == [getattr(made, "listed", made) for made in map(source.make, tasks)]


def test_original_bytes_of_grey_and_odd_images(tmp_path):
    write_coco(tmp_path)
    first, second, _ = make_all(coco_params(tmp_path), "train")
    assert first.captions == ("Two cats and a hot dog.", "sky")
    image = second.image
    assert (image.image_id, image.height, image.width) == (2, 97, 31)
    assert image.encoded == (tmp_path / "train2017/000000000002.jpg").read_bytes()
    assert image.decode().shape == (97, 31, 3)


def test_what_is_skipped_says_why(tmp_path):
    folder = write_coco(tmp_path)
    assert reason(make_all(coco_params(folder), "train"), 3) == "has no caption"
    first, second = (folder / f"train2017/00000000000{k}.jpg" for k in (1, 2))
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    second.write_bytes(noise_jpeg(31, 97))
    (folder / "val2017/000000000009.jpg").write_bytes(b"<html>not found</html>")
    outcomes = make_all(coco_params(folder), "train") + make_all(coco_params(folder), "test")
    assert reason(outcomes, 1).startswith("JPEG without an end, cut short at")
    assert reason(outcomes, 2) == "is 97 × 31 pixels, annotated as 31 × 97"
    assert reason(outcomes, 9) == "cannot be decoded as an image (22 bytes)"
    first.unlink()
    missing = make_all(coco_params(folder), "train")[0]
    assert (missing.reason, missing.file_name) == ("no such file", str(first))


def test_val_is_held_out_of_train(tmp_path):
    source = coco_source(coco_params(write_coco(tmp_path), 0.5))
    ids = {split: {task.image_id for task in tasks} for split, tasks in source.tasks.items()}
    assert ids["train"] | ids["val"] == {1, 2, 3} and not ids["train"] & ids["val"]
    assert ids["pairs"] == ids["train"] and ids["test"] == {9}
    held_out = [is_held_out(image_id, VAL, 0.1) for image_id in range(5000)]
    assert 420 < sum(held_out) < 580
    assert all(is_held_out(k, VAL, 0.2) for k in range(5000) if held_out[k]), (
        "a larger val holds it"
    )


def test_val2017_alone_is_cut_into_train_and_test(tmp_path):
    """Nothing of train2017 is there; who is in which part depends on no other image."""
    folder, ids = tmp_path / "val2017", range(1, 41)
    folder.mkdir()
    images = [{"id": k, "file_name": f"{k:012d}.jpg", "height": 8 + k, "width": 12} for k in ids]
    for image in images:
        (folder / image["file_name"]).write_bytes(noise_jpeg(image["height"], 12))
    (tmp_path / "annotations").mkdir()
    contents = {
        "instances_val2017": [instance(100 + k, k, [[1.0, 1, 9, 1, 9, 7]]) for k in ids],
        "captions_val2017": [{"image_id": k, "caption": "a cat"} for k in ids],
    }
    for name, annotations in contents.items():
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (tmp_path / f"annotations/{name}.json").write_text(json.dumps(content))
    params = coco_params(tmp_path, 0.2).model_copy(update={"train_part": "val2017"})
    found = {
        split: {task.image_id for task in tasks}
        for split, tasks in coco_source(params).tasks.items()
    }
    assert found["pairs"] == found["train"]
    parts = [found["train"], found["val"], found["test"]]
    assert sorted(k for part in parts for k in part) == list(ids) and min(map(len, parts)) >= 2
    (made, *_) = make_all(params, "train")
    assert made.captions == ("a cat",) and len(made.annotations) == 1
    assert all(isinstance(made, Example) for made in make_all(params, "test"))
    smaller = params.model_copy(update={"test_fraction": 0.2})
    assert {task.image_id for task in coco_source(smaller).tasks["test"]} < found["test"]


def test_limits_take_the_smallest_ids(tmp_path):
    source = coco_source(coco_params(write_coco(tmp_path), train=2, pairs=0))
    assert [task.image_id for task in source.tasks["train"]] == [1, 2]
    assert source.tasks["pairs"] == []


def test_a_missing_file_is_named_with_the_fix(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"instances_train2017\.json.*download\.coco"):
        coco_source(coco_params(tmp_path))
    folder = write_coco(tmp_path)
    (folder / "val2017/000000000009.jpg").unlink()
    (folder / "val2017").rmdir()
    with pytest.raises(FileNotFoundError, match=r"val2017: not found; download\.coco\.folder"):
        coco_source(coco_params(folder))


def test_files_of_another_format_are_refused(tmp_path):
    path = write_coco(tmp_path) / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    path.write_text(
        json.dumps(content | {"categories": [*CATEGORIES, {"id": 2, "name": "bicycle"}]})
    )
    with pytest.raises(ValueError, match=r"list different categories"):
        coco_source(coco_params(tmp_path))
    path.write_text(json.dumps({"images": []}))
    with pytest.raises(ValueError, match=r"instances_val2017\.json: not a COCO file: it lacks"):
        coco_source(coco_params(tmp_path))


def test_images_outside_the_folder_are_refused(tmp_path):
    path = write_coco(tmp_path) / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = "../train2017/000000000001.jpg"
    path.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"file_name '\.\./train2017/.*': .* such as '000000000001\.jpg'"
    ):
        coco_source(coco_params(tmp_path))


def change(folder: Path, name: str, path: tuple, value) -> Path:
    """Put a value into an annotation file, or take what is there away if it is `GONE`."""
    file = folder / f"annotations/{name}.json"
    content = json.loads(file.read_text())
    place = content
    for key in path[:-1]:
        place = place[key]
    if value is GONE:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    file.write_text(json.dumps(content))
    return folder


GONE = object()
RLE = encode_mask(np.pad(np.ones((20, 20), bool), ((5, 15), (10, 30))))
RUNS = {"size": [40, 60], "counts": [405, *[20, 20] * 19, 20, 40 * 60 - 405 - 760 - 20]}
BOX, MASK = [10.0, 5.0, 20.0, 20.0], np.s_[5:25, 10:30]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("iscrowd", GONE),
        ("iscrowd", None),
        ("iscrowd", False),
        ("area", GONE),
        ("area", None),
        ("bbox", GONE),
        ("bbox", []),
        ("segmentation", SQUARE[0]),
        ("segmentation", RLE),
        ("segmentation", RUNS),
        ("id", "21"),
        ("id", 21.0),
        ("image_id", "9"),
        ("category_id", "17"),
    ],
)
def test_what_other_tools_write_has_one_form_inside(tmp_path, key, value):
    folder = change(write_coco(tmp_path), "instances_val2017", ("annotations", 0, key), value)
    (example,) = make_all(coco_params(folder), "test")
    (annotation,) = example.annotations
    assert decode_mask(annotation.pop("segmentation"), (40, 60))[MASK].sum() == 400
    expected = {"id": 21, "image_id": 9, "category_id": 17, "bbox": BOX, "area": 400.0}
    assert annotation == expected | {"iscrowd": 0}


EMPTY = encode_mask(np.zeros((40, 60), bool))


@pytest.mark.parametrize("value", [GONE, None, [], [[]], [[1, 2, 3, 4]], EMPTY])
def test_an_object_without_mask_is_kept_counted_and_named(tmp_path, value):
    place = ("annotations", 0, "segmentation")
    folder = change(write_coco(tmp_path), "instances_val2017", place, value)
    source = coco_source(coco_params(folder))
    (annotation,) = make_all(coco_params(folder), "test")[0].annotations
    assert not decode_mask(annotation["segmentation"], (40, 60)).any()
    assert (annotation["bbox"], annotation["area"]) == (BOX, 400.0)
    assert source.files["instances_val2017.json"] == AnnotationFile(1, {NO_MASK: [21]})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bbox": [10, 5, 0.5, 20]}, NO_AREA),
        ({"bbox": [70, 5, 20, 20]}, NO_AREA),
        ({"bbox": [10, 5, -20, 20]}, NO_AREA),
        ({"bbox": [20, 15, 40, 25]}, WRONG_BOX),
        ({"bbox": [20, 15, 20, 20], "segmentation": RLE}, WRONG_BOX),
        ({"bbox": [30, 15, 40, 20], "segmentation": None}, WRONG_BOX),
        ({"bbox": None, "segmentation": None}, NEITHER),
        ({"image_id": 10}, NO_IMAGE),
    ],
)
def test_annotations_that_cannot_be_learned_are_counted_and_named(tmp_path, changes, reason):
    folder = write_coco(tmp_path)
    for key, value in changes.items():
        change(folder, "instances_val2017", ("annotations", 0, key), value)
    source = coco_source(coco_params(folder))
    assert source.files["instances_val2017.json"].unusable == {reason: [21]}
    report = summarise(empty_reports(source), source)
    told = [line for line in notices(report) if line.startswith("instances_val2017.json")]
    assert told == [f"instances_val2017.json: 1 annotations {reason} (ids 21)"]
    refused = [
        line for line in find_problems(report, LENIENT) if line.startswith("instances_val2017")
    ]
    assert bool(refused) == (reason != NO_IMAGE)
    assert all("1 of 1 annotations are unusable" in line for line in refused)


LENIENT = DownloadParams.model_construct(
    max_skipped_fraction=1.0,
    max_leaked_fraction=1.0,
    max_unmatched_fraction=1.0,
    max_missing_class_fraction=1.0,
)
ANNOTATION = r"instances_val2017\.json: annotation 21: "


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("annotations", 0, "segmentation"), [[1, 2, 3, float("nan"), 5, 6]], "expected finite"),
        (("annotations", 0, "segmentation"), [[1, 2, 3, "4", 5, 6]], "expected finite numbers"),
        (("annotations", 0, "segmentation"), [[1, 2, 3, 4, 5, 6, 7]], "a polygon of 7 numbers"),
        (("annotations", 0, "segmentation"), "mask.png", "expected polygons or an RLE"),
        (("annotations", 0, "segmentation"), {"counts": RLE["counts"]}, "has size and counts"),
        (("annotations", 0, "segmentation"), RLE | {"size": [60, 40]}, r"of size \[60, 40\] for"),
        (("annotations", 0, "segmentation"), RLE | {"size": None}, "RLE of size None for an image"),
        (("annotations", 0, "segmentation"), RLE | {"counts": "garbage!"}, "RLE counts 'garbage!'"),
        (("annotations", 0, "segmentation"), RLE | {"counts": RLE["counts"][:-4]}, "not runs that"),
        (("annotations", 0, "segmentation"), RLE | {"counts": ""}, "add up to 40 × 60 pixels"),
        (("annotations", 0, "segmentation"), RLE | {"counts": None}, "not runs that add up"),
        (("annotations", 0, "segmentation"), RUNS | {"counts": [405, 20]}, "not runs that add up"),
        (("annotations", 0, "segmentation"), RUNS | {"counts": [-1, 2401]}, "not runs that add up"),
        (("annotations", 0, "bbox"), [10, 5, 20], "bbox: expected 4 finite numbers"),
        (("annotations", 0, "bbox"), [10, 5, 20, float("inf")], "bbox: expected 4 finite numbers"),
        (("annotations", 0, "area"), "large", "area: expected a finite number"),
        (("annotations", 0, "bbox"), [10, 5, 10**400, 20], "bbox: expected 4 finite numbers"),
        (("annotations", 0, "bbox"), [10, 5, 1e7, 20], r"bbox: 1e\+07 is far outside .* 60 × 40"),
        (("annotations", 0, "bbox"), [10, -401, 10, 1], "bbox: -401 is far outside the image"),
        (("annotations", 0, "iscrowd"), 2, "iscrowd is 2, expected 0 or 1"),
        (("annotations", 0, "category_id"), 99, "category_id 99 is not among the file's categ"),
        (("annotations", 0, "image_id"), "a.jpg", "image_id is 'a.jpg', expected a whole"),
    ],
)
def test_annotations_that_are_none_are_refused_by_file_and_id(tmp_path, path, value, message):
    folder = change(write_coco(tmp_path), "instances_val2017", path, value)
    with pytest.raises(ValueError, match=ANNOTATION + f".*{message}"):
        coco_source(coco_params(folder))


READ = """
import resource, sys
from pathlib import Path
from stages.download.sources.coco.annotations import read_instances
resource.setrlimit(resource.RLIMIT_AS, (6_000_000_000, 6_000_000_000))
try:
    read_instances(Path(sys.argv[1]))
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize("far", [1e7, -1e12])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_polygon_far_outside_its_image_does_not_crash(tmp_path, far, axis):
    """pycocotools allocates memory for each pixel along an edge, and does not look if it got it."""
    polygon = [10.0, 5.0, 30.0, 5.0, 30.0, 25.0]
    polygon[2 + axis] = far
    folder = write_coco(tmp_path)
    change(folder, "instances_val2017", ("annotations", 0, "bbox"), GONE)
    change(folder, "instances_val2017", ("annotations", 0, "segmentation"), [polygon])
    command = [sys.executable, "-c", READ, str(folder / "annotations/instances_val2017.json")]
    told = subprocess.check_output(command, text=True, cwd=REPOSITORY)
    assert re.search(ANNOTATION + rf"segmentation: {re.escape(f'{far:g}')} is far outside", told)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("annotations", 1), instance(11, 2), "annotation id 11 is given twice"),
        (("annotations", 0, "id"), GONE, "annotation: id is None, expected a whole number"),
        (("annotations", 0, "id"), -1, "annotation: id is -1"),
        (("images", 1, "id"), 3, "image id 3 is given twice"),
        (("images", 1, "file_name"), "000000000003.jpg", "image file_name '.*3.jpg' is given twi"),
        (("images", 1, "width"), None, "image 1: width is None"),
        (("images", 1, "width"), 0, "image 1: is 0 × 40 pixels, expected 1 to 65535"),
        (("images", 1, "height"), 65_536, "image 1: is 60 × 65536 pixels, expected 1 to 65535"),
        (("categories", 1, "id"), 1, "category id 1 is given twice"),
        (("categories", 1, "name"), None, "category 17: name is None"),
        (("categories", 1, "name"), "person", "category name 'person' is given twice"),
        (("annotations",), {}, r"not a COCO file: it lacks \['annotations'\]"),
    ],
)
def test_files_that_contradict_themselves_are_refused(tmp_path, path, value, message):
    folder = change(write_coco(tmp_path), "instances_train2017", path, value)
    with pytest.raises(ValueError, match=rf"instances_train2017\.json: {message}"):
        coco_source(coco_params(folder))


@pytest.mark.parametrize("value", [GONE, 7])
def test_captions_must_be_texts(tmp_path, value):
    path = ("annotations", 1, "caption")
    folder = change(write_coco(tmp_path), "captions_train2017", path, value)
    with pytest.raises(ValueError, match=r"captions_train2017\.json: caption 2: caption is "):
        coco_source(coco_params(folder))


def test_a_blank_caption_is_none(tmp_path):
    folder = change(
        write_coco(tmp_path), "captions_train2017", ("annotations", 1, "caption"), " \n "
    )
    change(folder, "captions_train2017", ("annotations", 2, "caption"), "")
    first, *others = make_all(coco_params(folder), "train")
    assert first.captions == ("Two cats and a hot dog.",)
    assert reason(others, 2) == reason(others, 3) == "has no caption"


def test_captions_of_other_images_are_refused(tmp_path):
    folder = write_coco(tmp_path)
    for number in range(3):
        change(folder, "captions_train2017", ("annotations", number, "image_id"), 70 + number)
    with pytest.raises(ValueError, match=r"captions_train2017\.json: no caption is of an image of"):
        coco_source(coco_params(folder))


def test_ids_may_begin_at_zero(tmp_path):
    """For pycocotools' matching, annotation 0 is none: its object would count as missed."""
    folder = write_coco(tmp_path)
    change(folder, "instances_train2017", ("annotations", 0, "id"), 0)
    change(folder, "instances_train2017", ("images", 1, "id"), 0)
    change(folder, "instances_train2017", ("annotations", 0, "image_id"), "0")
    change(folder, "captions_train2017", ("annotations", 0, "image_id"), 0)
    change(folder, "instances_train2017", ("annotations", 2), instance(13, 2, iscrowd=1))
    first = make_all(coco_params(folder), "train")[0]
    assert (first.image.image_id, [a["id"] for a in first.annotations]) == (0, [1])


def test_class_ids_that_begin_at_zero_are_shifted(tmp_path):
    """For phrases, class 0 is none: it would lose all labels."""
    folder = write_coco(tmp_path)
    for name in ("instances_train2017", "instances_val2017"):
        change(folder, name, ("categories", 1, "id"), 0)
    for number in range(3):
        change(folder, "instances_train2017", ("annotations", number, "category_id"), 0)
    change(folder, "instances_val2017", ("annotations", 0, "category_id"), 0)
    source = coco_source(coco_params(folder))
    assert [(c.id, c.name) for c in source.categories] == [
        (1, "cat"),
        (2, "person"),
        (59, "hot dog"),
    ]
    for split in ("train", "test"):
        made = make_all(coco_params(folder), split)[0]
        assert {a["category_id"] for a in made.annotations} == {1}


@pytest.mark.parametrize(
    ("key", "value"),
    [("iscrowd", 1), ("segmentation", None), ("bbox", [10, 5, 0, 0]), ("category_id", 58)],
)
def test_a_split_without_an_object_to_learn_from_is_refused(tmp_path, key, value):
    """Stage `finetune` would find that out after all trainings."""
    folder = write_coco(tmp_path)
    change(folder, "instances_train2017", ("annotations", 2), instance(13, 1, category_id=17))
    change(folder, "instances_train2017", ("annotations", 0, "category_id"), 1)
    assert not coco_source(coco_params(folder)).problems
    change(folder, "instances_train2017", ("annotations", 0, key), value)
    (problem,) = coco_source(coco_params(folder)).problems
    assert "instances_train2017.json: none of the 3 annotations of training images is" in problem


def test_an_image_that_was_annotated_upright_is_turned(tmp_path):
    folder = write_coco(tmp_path)
    encoded, _ = phone_jpeg(60, 40)
    (folder / "val2017/000000000009.jpg").write_bytes(encoded)  # 40 × 60, turned by a tag
    (example,) = make_all(coco_params(folder), "test")
    assert example.image.decode().shape == (40, 60, 3)
    assert decode_mask(example.annotations[0]["segmentation"], (40, 60)).sum() == 400


def test_real_photographs(tmp_path, monkeypatch):
    folder = coco_mini()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OVIS_WORKERS", "1")
    write_download_params(
        tmp_path,
        source="coco",
        shard_images=4000,
        max_unmatched_fraction=0.2,
        max_missing_class_fraction=0.5,
        coco={
            "folder": str(folder),
            "test_fraction": 0.5,
            "val_fraction": 0.1,
            "max_images": {"pairs": 5, "test": 20},
        },
    )
    main()
    out = tmp_path / "data/download"
    splits = json.loads((out / "report.json").read_text())["splits"]
    assert splits["train"]["images"] + splits["val"]["images"] == 80
    assert (splits["pairs"]["images"], splits["test"]["images"]) == (5, 20)
    assert splits["train"]["mentioned_in_images"]["person"] > 20
    truth = json.loads((out / "ground_truth/test.json").read_text())
    assert len(truth["categories"]) == 80
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    masks = [decode_mask(a["segmentation"], sizes[a["image_id"]]) for a in truth["annotations"]]
    areas = np.array([annotation["area"] for annotation in truth["annotations"]])
    assert np.corrcoef([mask.sum() for mask in masks], areas)[0, 1] > 0.99
    shards = [out / f"images/train/{shard}.parquet" for shard in (0, 1)]
    assert sum(1 for _ in read_images(*shards)) == splits["train"]["images"]


def test_narratives_belong_to_the_images_that_their_official_ids_name(tmp_path):
    params = coco_params(write_coco(tmp_path)).model_copy(update={"narratives": True})
    source = coco_source(params)
    assert [path.name for path in source.narratives.paths] == [
        "coco_train_localized_narratives-00000-of-00004.jsonl",
        "coco_train_localized_narratives-00001-of-00004.jsonl",
        "coco_train_localized_narratives-00002-of-00004.jsonl",
        "coco_train_localized_narratives-00003-of-00004.jsonl",
    ]
    ids = [source.narratives.image_id(name) for name in ("381639", "6375c17e61428d75", "9" * 5000)]
    assert ids == [381639, -1, -1]
    annotations = tmp_path / "annotations"
    (annotations / "captions_train2017.json").rename(annotations / "captions_val2017.json")
    change(tmp_path, "captions_val2017", ("annotations", 0, "image_id"), 9)
    small = coco_source(params.model_copy(update={"train_part": "val2017"}))
    assert [path.name for path in small.narratives.paths] == ["coco_val_localized_narratives.jsonl"]


def test_narratives_in_several_files_reach_the_shards_of_their_images(tmp_path, monkeypatch):
    folder = write_coco(tmp_path / "coco")
    # not the bytes of a training image
    (folder / "val2017/000000000009.jpg").write_bytes(noise_jpeg(40, 60, grey=True))
    table = folder / "annotations/instances_train2017.json"
    content = json.loads(table.read_text())
    content["annotations"] = [instance(11, 1, category_id=1)]  # of a base class
    table.write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OVIS_WORKERS", "1")
    write_download_params(
        tmp_path,
        source="coco",
        max_skipped_fraction=0.5,
        max_missing_class_fraction=1.0,
        max_unmatched_fraction=1.0,
        coco={"folder": str(folder), "val_fraction": 0.0, "narratives": True},
    )
    message = r"-00002-of-00004\.jsonl: not found; download\.coco\.narratives .*google\.github\.io"
    said = {"dataset_id": "mscoco_train2017", "annotator_id": 0, "timed_caption": [], "traces": []}
    told = ["1", "2", None, "1"]
    for number, image_id in enumerate(told):
        path = folder / f"annotations/coco_train_localized_narratives-0000{number}-of-00004.jsonl"
        if image_id is None:
            continue
        text = json.dumps({**said, "image_id": image_id, "caption": f"narrative {number}"})
        path.write_text(text + "\n")
    with pytest.raises(FileNotFoundError, match=message):
        main()
    assert not list(Path("data/download").rglob("*.parquet"))  # nothing is copied before
    (folder / "annotations/coco_train_localized_narratives-00002-of-00004.jsonl").touch()
    main()
    found = {
        shard: [json.loads(line)["caption"] for line in path.read_text().splitlines()]
        for shard in (0, 1)
        if (path := Path(f"data/download/narratives/train/{shard}.jsonl"))
    }
    assert found == {0: ["narrative 1"], 1: ["narrative 0", "narrative 3"]}
