"""label_quality: worked numbers of IoU, pointing and recall, and the whole stage on a handful."""

import dataclasses
from functools import partial

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.common.formats.categories import Category
from stages.common.formats.coco import make_instances
from stages.common.formats.images import write_images
from stages.common.formats.tables import boxes_by_image
from stages.common.geometry.masks import decode_mask, encode_mask, mask_iou
from stages.common.runtime.storage import read_json, write_json, write_table, write_tensors
from stages.label_quality.agreement import measure_labels, measure_pointing
from stages.label_quality.figure import choose_labels
from stages.label_quality.params import LabelQualityParams, MapParams
from stages.label_quality.shard import (
    MapsInUse,
    ShardInputs,
    join_columns,
    join_tables,
    measure_image,
)
from stages.label_quality.simple_masks import LabelMaps, measure_masks, measure_squares, peak
from stages.label_quality.summary import per_class_rows, quality_metrics, recall_rows
from tests.support.boxes import box_annotation, box_mask
from tests.support.images import noise_image
from tests.support.run_module import run_module

CUP, FISH, CAR = 1, 2, 3
CATEGORIES = [
    Category(CUP, "cup", "base", ("cup",)),
    Category(FISH, "fish", "novel", ("fish",)),
    Category(CAR, "car", "novel", ("car",)),
]
PARAMS = LabelQualityParams(
    recall_at=[1, 2, 5],
    activation_thresholds=[0.2, 0.6],
    activation_fractions=[0.25, 0.5, 1.0],
    square_sides=[0.25, 0.5],
    montage_rows=3,
)
LAST = MapParams(activation_round="last", smoothing=0.0)
IN_USE = MapsInUse(boxes=LAST, masks=LAST)
HW = (20, 20)
annotation = partial(box_annotation, image_hw=HW)


def measure(labels, truth, maps=None, **changes):
    """Return what is measured of the labels, by the same maps wherever maps are used."""
    labels, objects = make_instances(labels), make_instances(truth)
    things = objects.select(~objects.crowd)
    maps = np.zeros((len(labels), *HW)) if maps is None else maps
    maps = maps.astype(np.float32)
    params = LabelQualityParams(**PARAMS.model_dump() | changes)
    return {
        **measure_labels(labels, objects),
        **measure_masks(labels, things, LabelMaps(maps, maps, maps), HW, params),
        **measure_squares(labels, things, maps, HW, params.square_sides),
    }


def test_label_iou_is_that_of_the_best_object_of_its_class():
    truth = [
        annotation(CUP, (0, 0, 10, 10)),
        annotation(CUP, (10, 10, 20, 20)),
        annotation(FISH, (10, 0, 20, 10)),
    ]
    label = annotation(CUP, (5, 0, 20, 10))  # overlaps cup by 50, fish by 100 of its 150
    found = measure([label], truth)
    assert found["box_iou"] == pytest.approx([50 / 200])
    assert found["mask_iou"] == pytest.approx([50 / 200])
    assert found["filled_iou"] == pytest.approx([50 / 200])
    assert found["present"].tolist() == [True]
    assert found["side"] == pytest.approx([150**0.5])
    assert found["true_side"] == pytest.approx([10])


def test_activation_above_a_threshold_counts_inside_the_box_only():
    heat = np.full((1, *HW), 0.7)
    heat[0, :, 5:] = 0.4
    found = measure([annotation(CUP, (0, 0, 10, 10))], [annotation(CUP, (0, 0, 5, 20))], heat)
    assert found["filled_iou"] == pytest.approx([50 / 150])
    # above 0.2 everything in the box; above 0.6 its left half, 50 pixels inside the 100 of the cup
    assert found["activation_iou"] == pytest.approx(np.array([[50 / 150, 50 / 100]]))


def test_absent_class_gets_zero_and_crowds_are_no_objects():
    truth = [annotation(CUP, (0, 0, 10, 10), iscrowd=1)]
    labels = [annotation(CUP, (0, 0, 10, 10)), annotation(FISH, (0, 0, 10, 10))]
    found = measure(labels, truth)
    assert found["box_iou"].tolist() == found["mask_iou"].tolist() == [0.0, 0.0]
    assert found["present"].tolist() == [True, False]
    assert found["crowd"].tolist() == [True, False]
    assert not found["square_iou"].any() and np.isnan(found["true_side"]).all()


def test_the_ellipse_touches_the_middles_of_the_boxs_sides():
    """Of a true disc in the box all of it; of the box filled, a quarter of pi."""
    rows, columns = np.mgrid[:20, :20] + 0.5
    disc = (rows - 10) ** 2 + (columns - 8) ** 2 <= 8**2
    label = annotation(CUP, (0, 2, 16, 18))
    outlined = label | {"segmentation": encode_mask(disc)}
    assert measure([label], [outlined])["ellipse_iou"] == [1.0]
    of_box = measure([label], [label])["ellipse_iou"]
    assert of_box == pytest.approx([np.pi / 4], abs=0.03)
    beside = measure([label], [annotation(CUP, (16, 0, 20, 20))])
    assert beside["ellipse_iou"].tolist() == [0.0]


def test_a_fraction_takes_the_most_activated_pixels_of_the_box():
    heat = np.zeros((1, *HW))
    heat[0, :, :5] = 0.01  # however little: the order counts, not the height
    heat[0, :, 15:] = 1.0  # outside of the box
    label = annotation(CUP, (0, 0, 10, 10))
    found = measure([label], [annotation(CUP, (0, 0, 5, 20))], heat)
    # a quarter: 25 of the left half's 50 pixels; half: these 50; all: the box. The cup has 100.
    assert found["fraction_iou"] == pytest.approx(np.array([[25 / 100, 50 / 100, 50 / 150]]))


def test_maps_are_read_between_the_centres_of_their_cells():
    """Two cells, 0 and 1: at 20 pixels the value rises from pixel 5 to 15, so past 0.6 from 11."""
    cells = np.array([[[0.0, 1.0]]], np.float32)
    label = annotation(CUP, (0, 0, 20, 20))
    labels, things = make_instances([label]), make_instances([annotation(CUP, (11, 0, 20, 20))])
    found = measure_masks(labels, things, LabelMaps(cells, cells, cells), HW, PARAMS)
    assert found["activation_iou"][0, 1] == 1.0


def test_a_box_without_the_centre_of_a_pixel_has_no_mask():
    thin = annotation(CUP, (3, 3, 4, 4)) | {"bbox": [3.6, 3.0, 0.7, 5.0]}
    found = measure([thin], [annotation(CUP, (0, 0, 10, 10))])
    for name in ("filled_iou", "ellipse_iou", "activation_iou", "fraction_iou"):
        assert not found[name].any(), name


def test_the_square_stands_at_the_peak_and_is_cut_to_the_image():
    maps = np.zeros((2, 4, 4), np.float32)  # cells of 5×5 pixels
    maps[0, 1, 2] = maps[1, 0, 0] = 1  # centred on (12.5, 7.5) and (2.5, 2.5)
    labels = make_instances([annotation(CUP, (0, 0, 5, 5)), annotation(FISH, (0, 0, 5, 5))])
    truth = [annotation(CUP, (10, 5, 15, 10)), annotation(FISH, (0, 0, 5, 10))]
    found = measure_squares(labels, make_instances(truth), maps, HW, [0.25, 0.5])
    # sides of 5 and 10; the larger one at the corner is cut to 7.5 × 7.5, of which 5 × 7.5 fish
    expected = [[1.0, 25 / 100], [25 / 50, 37.5 / (56.25 + 50 - 37.5)]]
    assert found["square_iou"] == pytest.approx(np.array(expected))


def test_the_peak_lies_between_cells_where_the_map_says_so():
    rows, columns = np.mgrid[:8, :8] + 0.5
    cells = np.exp(-((rows - 3.3) ** 2 + (columns - 4.9) ** 2) / (2 * 2.0**2))
    x, y = peak(cells, (80, 160))
    assert (x, y) == pytest.approx((4.9 * 20, 3.3 * 10), abs=1.0)
    assert peak(np.eye(8), (80, 80)) == (5.0, 5.0)  # at the border there is no parabola
    assert peak(np.zeros((8, 8)), (80, 80)) == (5.0, 5.0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_counting_in_the_box_equals_comparing_masks(seed):
    random = np.random.default_rng(seed)
    num_labels, num_objects, thresholds = 3, 4, [0.1, 0.5, 0.9]
    corners = np.sort(random.integers(0, 21, (num_labels + num_objects, 2, 2)), axis=1)
    every = [
        annotation(int(random.integers(1, 3)), [*low, *high])
        | {"segmentation": encode_mask(random.random(HW) > 0.5)}
        for low, high in corners.tolist()
    ]
    labels, truth = every[:num_labels], every[num_labels:]
    maps = random.random((num_labels, *HW)).astype(np.float32)
    found = measure(labels, truth, maps, activation_thresholds=thresholds)
    for row, label in enumerate(labels):
        x, y, w, h = (int(value) for value in label["bbox"])
        inside = box_mask((x, y, x + w, y + h), HW)
        masks = [inside] + [inside & (maps[row] > np.float32(t)) for t in thresholds]
        own = [o for o in truth if o["category_id"] == label["category_id"]]
        objects = [decode_mask(o["segmentation"], HW) for o in own]
        expected = [max((mask_iou(m, o) for o in objects), default=0.0) for m in masks]
        assert [found["filled_iou"][row], *found["activation_iou"][row]] == pytest.approx(expected)


def test_pointing_takes_the_centre_of_the_highest_cell():
    maps = np.zeros((3, 2, 4, 4))  # cells of 5×5 pixels
    maps[0, 0, 0, 1] = maps[0, 1, 3, 3] = 1  # pixels (7, 2) and (17, 17)
    maps[1, :, 2, 0] = 1
    truth = make_instances([annotation(CUP, (7, 2, 8, 3)), annotation(FISH, (0, 0, 20, 10))])
    found = measure_pointing(maps, np.array([CUP, FISH, CAR]), truth, HW)
    assert found["category_id"].tolist() == [CUP, FISH]  # no car to point at
    assert found["hit"].tolist() == [[True, False], [False, False]]


def test_a_map_that_points_into_the_box_of_an_object_without_outline_hits_it():
    nothing = encode_mask(np.zeros(HW, bool))
    boxed = annotation(CUP, (10, 10, 20, 20), iscrowd=1, segmentation=nothing)
    inputs = shard_inputs()
    inputs.truth[1] = [boxed]
    inputs.maps[0] = 0
    inputs.maps[0, 0, 3, 3] = inputs.maps[0, 1, 0, 0] = 1  # in the box, and outside
    tables = measure_shard(inputs, [CUP, FISH, CAR])
    assert tables.pointing["hit"].tolist() == [[True, False]]


def test_boxes_keep_their_order_within_an_image():
    rows = [(7, 1.0), (3, 2.0), (7, 0.0), (3, 1.0)]
    columns = {"image_id": pa.array([r[0] for r in rows], pa.int64())}
    columns |= {n: pa.array([r[1] for r in rows], pa.float32()) for n in ("x0", "y0", "x1", "y1")}
    grouped = boxes_by_image(pa.table(columns))
    assert {image: boxes[:, 0].tolist() for image, boxes in grouped.items()} == {
        7: [1.0, 0.0],
        3: [2.0, 1.0],
    }


def shard_inputs():
    """Three images: a right label, a wrong one (no fish there), and one without any."""
    truth = {
        1: [annotation(CUP, (0, 0, 10, 10))],
        2: [annotation(CUP, (10, 10, 20, 20)), annotation(CAR, (0, 0, 6, 6))],
        3: [annotation(9, (0, 0, 6, 6)), annotation(CAR, (0, 0, 20, 20), iscrowd=1)],
    }
    labels = {
        1: [annotation(CUP, (0, 0, 10, 5))],
        2: [annotation(FISH, (10, 10, 20, 20))],
    }
    maps = np.zeros((2, 2, 4, 4), np.float16)
    maps[0, :, 0, 0] = 1
    right = np.array([[15, 15, 20, 20], [0, 0, 10, 10]], np.float32)
    return ShardInputs(
        [{"id": i, "height": 20, "width": 20} for i in (1, 2, 3)],
        labels,
        truth,
        np.array([1, 2]),
        np.array([CUP, FISH]),
        maps,
        {1: right, 2: right},
        {1: right[::-1], 2: right},
    )


def measure_shard(inputs, category_ids):
    images = inputs.image_inputs()
    return join_tables(measure_image(p, category_ids, PARAMS, IN_USE, 0) for p in images)


def test_metrics_of_a_small_shard():
    tables = measure_shard(shard_inputs(), [CUP, FISH, CAR])
    metrics = quality_metrics(tables, CATEGORIES, PARAMS)
    assert metrics["labels"]["all"] == {"count": 2, "crowd_only": 0, "precision": 0.5}
    # one label has no correlation; its map's peak is a corner cell's centre, (2.5, 2.5)
    assert metrics["boxes"]["base"] == {"mean_iou": 0.5, "at_50": 1.0, "on_another": 0.0}
    # the fish's box is that of the cup
    assert metrics["boxes"]["novel"] == {"mean_iou": 0.0, "at_50": 0.0, "on_another": 1.0}
    square = {"mean_iou": 0.5625, "at_50": 1.0, "side": 0.5}
    assert metrics["fixed_square"]["base"] == square
    assert metrics["masks"]["pseudo"]["all"] == {"mean_iou": 0.25, "at_50": 0.5}
    assert metrics["masks_in_good_boxes"]["pseudo"]["all"]["mean_iou"] == 0.5
    assert metrics["pointing"]["base"] == {"count": 1, "round_0": 1.0, "round_1": 1.0}
    assert metrics["pointing"]["novel"] == {"count": 0, "round_0": -1.0, "round_1": -1.0}
    # cups in images 1 and 2: only the first is found, by box 2 of the search, 1 of the ranking
    assert metrics["recall"]["selective_search"]["base"] == {
        "recall@1": 0.0,
        "recall@2": 0.5,
        "recall@5": 0.5,
    }
    assert metrics["recall"]["ranking"]["base"] == {
        "recall@1": 0.5,
        "recall@2": 0.5,
        "recall@5": 0.5,
    }
    assert metrics["recall"]["ranking"]["novel"]["recall@5"] == 0.0  # the car; crowds do not count
    rows = per_class_rows(tables, CATEGORIES)
    assert [row["labels"] for row in rows] == [1, 1, 0]
    assert rows[2]["mask_iou"] == ""
    assert recall_rows(metrics, PARAMS)[1]["selective_search_base"] == 0.5


def test_random_order_depends_on_the_image_alone():
    whole = shard_inputs()
    boxes = np.random.default_rng(0).random((30, 4)).astype(np.float32) * 10
    boxes[:, 2:] += boxes[:, :2]
    whole.proposals.update({1: boxes, 2: boxes})
    one = ShardInputs(whole.images[:1], *list(vars(whole).values())[1:])
    other = ShardInputs(whole.images[1:], *list(vars(whole).values())[1:])
    together = measure_shard(whole, [CUP, CAR])
    apart = join_tables(measure_shard(part, [CUP, CAR]) for part in (one, other))
    np.testing.assert_equal(vars(apart), vars(together))


def test_label_without_a_map_is_an_error():
    inputs = shard_inputs()
    inputs.annotations[3] = [annotation(CAR, (0, 0, 5, 5))]
    with pytest.raises(ValueError, match=r"image_id 3 has labels of categories \[3\]"):
        measure_shard(inputs, [CUP, FISH, CAR])


def test_shard_without_labels_adds_nothing():
    empty = ShardInputs([], {}, {}, *list(vars(shard_inputs()).values())[3:])
    parts = [measure_shard(inputs, [CUP, FISH, CAR]) for inputs in (empty, shard_inputs())]
    joined = join_tables(parts)
    assert len(joined.labels["present"]) == 2


def test_montage_takes_base_and_novel_and_their_classes_in_turn():
    pool = [annotation(c, (0, 0, 2, 2), id=i) for i, c in enumerate([CUP] * 8 + [FISH] * 8 + [CAR])]
    chosen = choose_labels(pool, CATEGORIES, 6, np.random.default_rng(3))
    assert sorted(label["category_id"] for label in chosen) == [CUP] * 3 + [FISH, FISH, CAR]
    assert {label["category_id"] for label in chosen[:4]} == {CUP, FISH, CAR}
    assert len(choose_labels(pool[:2], CATEGORIES, 6, np.random.default_rng(3))) == 2


def test_params_must_rise():
    with pytest.raises(ValueError, match="must be strictly increasing"):
        LabelQualityParams(**PARAMS.model_dump() | {"recall_at": [10, 5]})


def test_boxes_and_masks_may_look_at_other_maps_than_the_last_one():
    """Their own round and blur: the first map has its peak elsewhere, so the square is too."""
    inputs = shard_inputs()
    inputs.maps[0, 0] = np.flip(inputs.maps[0, 1])
    first = MapsInUse(boxes=LAST.model_copy(update={"activation_round": "first"}), masks=LAST)
    (image, *_) = inputs.image_inputs()
    by_last, by_first = (measure_image(image, [CUP], PARAMS, use, 0) for use in (IN_USE, first))
    assert by_last.labels["square_iou"].any() and not by_first.labels["square_iou"].any()
    assert np.array_equal(by_last.labels["fraction_iou"], by_first.labels["fraction_iou"])


def test_sides_that_follow_the_objects_correlate_with_them():
    columns = [
        measure([annotation(CUP, (0, 0, s, s))], [annotation(CUP, (0, 0, s + 1, s + 1))])
        for s in (4, 8, 12)
    ]
    tables = measure_shard(shard_inputs(), [CUP])
    tables = dataclasses.replace(tables, labels=join_columns(columns))
    boxes = quality_metrics(tables, CATEGORIES, PARAMS)["boxes"]
    assert boxes["base"]["side_correlation"] == 1.0
    assert "side_correlation" not in boxes["novel"]


def write_inputs(folder):
    inputs, data = shard_inputs(), folder / "data"
    write_json(
        data / "download/categories.json",
        [{"id": c.id, "name": c.name, "split": c.split, "forms": [*c.forms]} for c in CATEGORIES],
    )
    for name, source in (
        ("download/ground_truth/train", inputs.truth),
        ("pseudo_labels/pseudo_annotations", inputs.annotations),
    ):
        rows = [{**row, "image_id": i} for i, group in source.items() for row in group]
        numbered = [{**row, "id": number} for number, row in enumerate(rows, 1)]
        write_json(data / f"{name}.json", {"annotations": numbered})
    for shard, image_ids in {0: [1, 3], 1: [2]}.items():
        here = np.isin(inputs.target_image_ids, image_ids)
        images = [noise_image(i, HW[0]) for i in image_ids]
        write_images(data / f"download/images/train/{shard}.parquet", images)
        captions = [{"image_id": i, "captions": ["a $1 cup and a fish"]} for i in image_ids]
        write_json(data / f"download/captions/train/{shard}.json", captions)
        tensors = {
            "image_id": torch.from_numpy(inputs.target_image_ids[here]),
            "category_id": torch.from_numpy(inputs.target_category_ids[here]),
            "maps": torch.from_numpy(inputs.maps[here]),
        }
        write_tensors(data / f"activation/{shard}.safetensors", tensors)
        for name, boxes in (("proposals", inputs.proposals), ("ranking", inputs.ranking)):
            rows = [(i, *box) for i in image_ids for box in boxes.get(i, np.zeros((0, 4)))]
            names, types = ("image_id", "x0", "y0", "x1", "y1"), [pa.int64()] + [pa.float32()] * 4
            columns = zip(*rows, strict=True)
            arrays = [pa.array(c, t) for c, t in zip(columns, types, strict=True)]
            write_table(data / f"{name}/{shard}.parquet", pa.table(arrays, names=names))
    (folder / "params.yaml").write_text(
        "seed: 5\nshards: [0, 1]\nlabel_quality:\n"
        "  {recall_at: [1, 2, 5], activation_thresholds: [0.2, 0.6], montage_rows: 3,\n"
        "   activation_fractions: [0.5], square_sides: [0.5]}\n"
        "pseudo_boxes: {activation_round: last, smoothing: 0.1, top_k: 50}\n"
        "pseudo_masks: {activation_round: last, smoothing: 0.0625, steps: 40}\n"
    )


# Python 3.12 and later warn of every fork beside BLAS threads, which the workers never use.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_stage_writes_the_same_bytes_whatever_the_number_of_processes(tmp_path, monkeypatch):
    write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    written = []
    for workers in ("1", "2"):
        monkeypatch.setenv("OVIS_WORKERS", workers)
        run_module("stages.label_quality")
        files = sorted((tmp_path / "data/label_quality").iterdir())
        written.append({file.name: file.read_bytes() for file in files})
    assert written[0] == written[1]
    assert list(written[0]) == ["metrics.json", "montage.png", "per_class.csv", "recall.csv"]
    metrics = read_json(tmp_path / "data/label_quality/metrics.json")
    assert metrics["labels"]["all"]["precision"] == 0.5
    montage = cv2.imdecode(np.frombuffer(written[0]["montage.png"], np.uint8), cv2.IMREAD_COLOR)
    assert min(montage.shape[:2]) > 400


def test_of_crowds_alone_the_stage_tells_no_number(tmp_path, monkeypatch, capsys):
    write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "data/download/ground_truth/train.json"
    crowds = [{**own, "iscrowd": 1} for own in read_json(path)["annotations"]]
    write_json(path, {"annotations": crowds})
    run_module("stages.label_quality")
    told = capsys.readouterr().out
    for group in ("base", "novel"):
        assert f"label_quality, {group}: no objects to measure\n" in told
    assert "-1" not in told and "IoU" not in told


def test_stage_without_annotations_counts_and_says_so(tmp_path, monkeypatch, capsys):
    write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "data/download/ground_truth/train.json"
    write_json(path, {"annotated": False, "annotations": []}, indent=None)
    run_module("stages.label_quality")
    output = tmp_path / "data/label_quality"
    metrics = read_json(output / "metrics.json")
    num_labels = len(
        read_json(tmp_path / "data/pseudo_labels/pseudo_annotations.json")["annotations"]
    )
    assert metrics["skipped"] == "no annotations: skipped"
    assert set(metrics) == {"skipped", "labels"}
    assert metrics["labels"]["all"] == {"count": num_labels}
    assert set(metrics["labels"]) == {"base", "novel", "all"} and num_labels
    header, first, *_ = (output / "per_class.csv").read_text().splitlines()
    assert header.startswith("category,split,labels,precision,box_iou")
    assert first.endswith(",,,,,")
    assert len((output / "recall.csv").read_text().splitlines()) == 4
    assert (output / "montage.png").is_file()
    assert "label_quality: no annotations: skipped" in capsys.readouterr().out
