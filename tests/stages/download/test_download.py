import json
from pathlib import Path
from typing import Any

import pytest

from stages.common.formats.captions import read_captions
from stages.common.formats.categories import read_categories
from stages.common.formats.images import EncodedImage, read_images
from stages.common.runtime.params import read_section
from stages.common.runtime.storage import read_json, write_json
from stages.download.__main__ import main, start
from stages.download.examples import Example, Leaked, Listed, Skipped, Source, group_by_file
from stages.download.ground_truth import GroundTruth
from stages.download.integrity import check_tasks
from stages.download.params import DownloadParams
from stages.download.report import empty_reports, find_problems, summarise
from stages.download.sources.scenes.classes import scene_categories
from stages.download.sources.scenes.source import SceneTask
from tests.support.download_params import write_download_params


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OVIS_WORKERS", "1")
    return tmp_path


def write_params(folder: Path, shards=(0, 1), missing=1.0, train=5, **scenes: Any) -> None:
    write_download_params(
        folder,
        shards,
        shard_images=2,
        max_skipped_fraction=0.1,
        max_unmatched_fraction=0.5,
        max_missing_class_fraction=missing,
        scenes={"num_images": {"train": train}, **scenes},
    )


def run(folder: Path, **changes: Any) -> dict[str, bytes]:
    """Run the stage and return its files' bytes by their relative names."""
    write_params(folder, **changes)
    main()
    out = folder / "data/download"
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def make_params(**changes) -> DownloadParams:
    whole = {"source": "scenes", "shard_images": 1, "max_skipped_fraction": 0.1}
    whole |= {
        "max_leaked_fraction": 0.0,
        "max_unmatched_fraction": 0.5,
        "max_missing_class_fraction": 0.5,
    }
    return DownloadParams.model_construct(**(whole | changes))


def test_layout_is_the_one_later_stages_read(workplace):
    files = run(workplace)
    assert set(files) == {
        "categories.json",
        "report.json",
        *(f"images/{name}.parquet" for name in ("train/0", "train/1", "pairs", "val", "test")),
        *(f"captions/{name}.json" for name in ("train/0", "train/1", "pairs")),
        *(f"ground_truth/{name}.json" for name in ("train", "val", "test")),
        *(f"annotations/{name}.json" for name in ("train/0", "train/1")),
        *(f"narratives/{name}.jsonl" for name in ("train/0", "train/1")),
    }
    out = workplace / "data/download"
    assert len(read_categories(out / "categories.json")) == 17
    ids = {s: [p.image_id for p in read_images(out / f"images/train/{s}.parquet")] for s in (0, 1)}
    assert ids == {0: [0, 1, 4], 1: [2, 3]}  # shard = id // 2 % 2
    assert list(read_captions(out / "captions/train/0.json")) == ids[0]
    truth = json.loads(files["ground_truth/train.json"])
    assert [image["id"] for image in truth["images"]] == [0, 1, 2, 3, 4]
    assert set(truth["images"][0]) == {"id", "file_name", "height", "width"}
    assert [a["id"] for a in truth["annotations"]] == list(range(1, 1 + len(truth["annotations"])))
    assert truth["categories"][12] == {"id": 13, "name": "umbrella", "split": "novel"}
    labels = {s: json.loads(files[f"annotations/train/{s}.json"]) for s in (0, 1)}
    assert {s: [entry["image_id"] for entry in own] for s, own in labels.items()} == ids
    split = {category["id"]: category["split"] for category in truth["categories"]}
    shown = {image["id"]: set() for image in truth["images"]}
    for annotation in truth["annotations"]:
        shown[annotation["image_id"]].add(annotation["category_id"])
    assert any(split[k] == "novel" for found in shown.values() for k in found)
    for entry in (*labels[0], *labels[1]):  # base classes, and nothing of where they are
        base = sorted(k for k in shown[entry["image_id"]] if split[k] == "base")
        assert entry == {"image_id": entry["image_id"], "category_ids": base}
    for shard in (0, 1):
        lines = files[f"narratives/train/{shard}.jsonl"].splitlines()
        assert [json.loads(line)["image_id"] for line in lines] == list(map(str, ids[shard]))
    report = json.loads(files["report.json"])
    assert report["splits"]["train"]["images"] == 5 and report["splits"]["train"]["captions"] == 10


# Python 3.12 and later warn of every fork beside BLAS threads, which the workers never use.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_number_of_processes_changes_no_byte(workplace, monkeypatch):
    alone = run(workplace)
    monkeypatch.setenv("OVIS_WORKERS", "2")
    assert run(workplace) == alone


def test_more_images_leave_other_shards_alone(workplace):
    few, more = run(workplace, train=5), run(workplace, train=6)  # image 5 is of shard 0
    changed = {name for name in more if few.get(name) != more[name]}
    assert changed == {
        "images/train/0.parquet",
        "annotations/train/0.json",
        "captions/train/0.json",
        "narratives/train/0.jsonl",
        "ground_truth/train.json",
        "report.json",
    }


def test_shards_of_an_earlier_run_go(workplace):
    run(workplace, shards=(0, 1, 2))
    assert "images/train/2.parquet" not in run(workplace)


def test_missing_classes_are_fatal_and_named(workplace, capsys):
    write_params(workplace, missing=0.0)
    with pytest.raises(SystemExit) as stop:
        start()
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert "data/download/report.json: classes without object in test: " in message
    assert "download.max_missing_class_fraction = 0.0" in message and "params.yaml" in message
    report = json.loads((workplace / "data/download/report.json").read_text())
    assert set(report["classes_without_object_in_test"]) <= {c.name for c in scene_categories(0)}


def test_a_typo_in_params_names_the_key(workplace):
    write_params(workplace, pairs_side=32)
    with pytest.raises(ValueError, match=r"download\.scenes\.pairs_side.*did you mean 'pair_side'"):
        read_section("download", DownloadParams)


def test_no_test_images_is_refused(workplace):
    write_params(workplace, train=0)
    with pytest.raises(ValueError, match=r"download\.scenes\.num_images\.train.*found 0"):
        read_section("download", DownloadParams)


@pytest.mark.parametrize("shards", [[1, 0], [0, 2], [1]])
def test_shards_must_count_up_from_zero(shards):
    with pytest.raises(ValueError, match=r"params\.yaml: shards: expected \[0, 1, …, n - 1\]"):
        group_by_file({"train": []}, shards, 400)


def test_shard_images_consecutive_ids_fill_one_shard():
    tasks = {split: [] for split in ("pairs", "val", "test")}
    tasks["train"] = [SceneTask("train", k) for k in range(1600)]
    files = group_by_file(tasks, [0, 1, 2, 3], 400)["train"]
    assert [len(found) for found in files.values()] == [400] * 4
    assert [task.image_id for task in files["train/2"]] == list(range(800, 1200))


def test_ground_truth_is_written_in_order_and_keeps_given_ids(tmp_path):
    def made(image_id: int, *annotations: dict) -> Example:
        return Example(EncodedImage(image_id, f"{image_id}.jpg", 1, 2, b""), (), annotations)

    shards = [
        [made(2, {"image_id": 2, "area": 1}), made(7, {"image_id": 7, "area": 3})],
        [made(3), made(5, {"image_id": 5, "id": 55}, {"image_id": 5, "area": 0.5})],
    ]
    truth = GroundTruth(tmp_path)
    for shard in shards:
        assert list(truth.collect(shard)) == shard
    truth.write(tmp_path / "streamed.json", make_source())
    annotations = [
        {"image_id": 2, "area": 1, "id": 1},
        {"image_id": 5, "id": 55},
        {"image_id": 5, "area": 0.5, "id": 3},
        {"image_id": 7, "area": 3, "id": 4},
    ]
    images = [{"id": k, "file_name": f"{k}.jpg", "height": 1, "width": 2} for k in (2, 3, 5, 7)]
    entry = {"id": 1, "name": "mushroom", "split": "base"}
    whole = {"images": images, "annotations": annotations, "categories": [entry]}
    write_json(tmp_path / "whole.json", whole, indent=None)
    assert (tmp_path / "streamed.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_ground_truth_says_what_nobody_has_looked_for(tmp_path):
    truth = GroundTruth(tmp_path)
    image = EncodedImage(4, "4.jpg", 1, 2, b"")
    list(truth.collect([Example(image, (), (), verified={9, 1})]))
    truth.write(tmp_path / "truth.json", make_source(annotated=False, ancestors={1: {8, 2}}))
    written = read_json(tmp_path / "truth.json")
    assert written["annotated"] is False
    assert written["images"][0]["verified_category_ids"] == [1, 9]
    assert written["categories"][0]["ancestors"] == [2, 8]


def make_source(**more) -> Source:
    return Source((scene_categories(0)[0],), {}, lambda task: task, **more)


def listed(image_id: int, *captions: str) -> Listed:
    image = EncodedImage(image_id, f"{image_id}.jpg", 1, 1, b"")
    return Example(image, captions, ({"category_id": 4},)).listed


def fill_report(outcomes: list) -> dict:
    categories = scene_categories(0)
    source = Source(tuple(categories), {}, lambda task: task)
    splits = empty_reports(source)
    for outcome in outcomes:
        splits["train"].add(outcome)
    splits["test"].add(listed(1))
    return summarise(splits, source)


def test_report_counts_and_names_who_and_why():
    report = fill_report(
        [
            listed(1, "two cups", "a red mug", "no idea"),
            listed(2, "a fine day"),
            Skipped(3, "train2017/3.jpg", "no such file"),
        ]
    )
    train = report["splits"]["train"]
    assert (train["images"], train["captions"], train["captions_without_class"]) == (2, 4, 2)
    assert train["images_without_class_in_captions"] == [
        {"file_name": "2.jpg", "caption": "a fine day"}
    ]
    assert train["mentioned_in_images"]["cup"] == 1 and train["objects"]["cup"] == 2
    assert train["skipped"] == [
        {"image_id": 3, "file_name": "train2017/3.jpg", "reason": "no such file"}
    ]
    assert "cup" not in report["classes_without_caption_in_train"]
    assert len(report["classes_without_caption_in_train"]) == 16


def test_fractions_decide_what_is_fatal():
    report = fill_report([listed(1, "a cup"), listed(2, "sky"), Skipped(3, "3.jpg", "gone")])
    lenient = {"max_skipped_fraction": 0.34, "max_missing_class_fraction": 1.0}
    assert find_problems(report, make_params(**lenient)) == []
    skipped, unmatched, mentions, objects = find_problems(
        report, make_params(max_unmatched_fraction=0.4)
    )
    assert skipped.startswith("split train: 1 of 3 images skipped") and "3.jpg: gone" in skipped
    assert "captions of 1 of 2 images name no class" in unmatched and "2.jpg: 'sky'." in unmatched
    assert mentions.startswith("classes without caption in train: 16 of 17 (mushroom, bird")
    assert objects.startswith("classes without object in test: 16 of 17")


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("has no caption", "Write captions for these images, or move them out of"),
        ("no such file", "Correct the names of these files"),
        ("cannot be decoded as an image (2 bytes)", "Copy broken files again"),
    ],
)
def test_the_advice_for_skipped_images_is_that_for_their_reason(reason, advice):
    report = fill_report([listed(1, "cup"), Skipped(3, "3.jpg", reason)])
    (problem,) = find_problems(report, make_params(max_missing_class_fraction=1.0))
    assert f"3.jpg: {reason}. {advice}" in problem and problem.count("; or allow a larger") == 1
    assert sum(word in problem for word in ("Write", "Correct", "Copy")) == 1


def test_leaked_images_are_counted_apart_and_limited():
    leaked = [Leaked(k, f"{k}.jpg", f"{k + 100}.jpg of test") for k in range(2, 7)]
    assert "leaked" not in fill_report([listed(1, "a cup")])["splits"]["train"]
    report = fill_report([listed(1, "a cup"), *leaked])
    train = report["splits"]["train"]
    assert (train["images"], train["skipped"]) == (1, []) and len(train["leaked"]) == 5
    assert train["leaked"][0] == {
        "image_id": 2,
        "file_name": "2.jpg",
        "same_as": "102.jpg of test",
    }
    lenient = {"max_skipped_fraction": 0.0, "max_missing_class_fraction": 1.0}
    assert find_problems(report, make_params(max_leaked_fraction=0.84, **lenient)) == []
    (problem,) = find_problems(report, make_params(max_leaked_fraction=0.83, **lenient))
    assert problem.startswith("split train: 5 of 6 images are held-out images, byte for byte")
    assert "download.max_leaked_fraction = 0.83" in problem
    assert "2.jpg is 102.jpg of test" in problem and "5.jpg" not in problem


def test_ids_are_given_once():
    check_tasks({"train": [SceneTask("train", 1), SceneTask("train", 2)], "val": []})
    with pytest.raises(ValueError, match=r"split train: 1 image ids .*more than once, such as 2;"):
        check_tasks({"train": [SceneTask("train", k) for k in (1, 2, 2)]})


def test_a_split_without_images_is_fatal():
    problems = find_problems(
        fill_report([]), make_params(max_missing_class_fraction=1.0, max_skipped_fraction=1.0)
    )
    assert problems == ["split train has no image left; see report.json for the reasons"]
