"""A shard without images, and one whose captions name nothing, through every stage that reads one.

Which shard an image falls in is told by its id, so few images may leave shards empty.
"""

import shutil
import sys
from pathlib import Path

import pytest

from flows.overlay import apply_overlay
from stages.common.formats.images import write_images
from stages.common.runtime.storage import (
    read_json,
    read_table,
    read_tensors,
    write_json,
    write_tensors,
)
from stages.models.vision_language.small_albef import save_small_albef
from stages.wspn.stream import ImageStream
from tests.support.run_module import run_module
from tests.support.small_albef import small_albef
from tests.support.tiny_detector import EMBEDDINGS, NETWORK, TRAINING, annotate, make_image

FULL, EMPTY, UNNAMED = 0, 1, 2
IMAGES = {FULL: [1, 2, 3, 4], EMPTY: [], UNNAMED: [5]}
CAPTIONS = {FULL: ["a red cup and a dog"], UNNAMED: ["a photo near the wall"]}
CATEGORIES = [  # of the disc and the box that the images show
    {"id": 3, "name": "cup", "split": "base", "forms": ["cup"]},
    {"id": 5, "name": "dog", "split": "novel", "forms": ["dog"]},
]
PARAMS = {
    "shards": [FULL, EMPTY, UNNAMED],
    "proposals": {"min_side": 4.0},
    "wspn": {"model": {"image_side": 64, "class_hidden": 8, "object_hidden": 8}},
    "activation": {"image_size": 32},
    "pseudo_masks": {"steps": 2},
    "pseudo_labels": {"min_area": 1},
    "label_quality": {"montage_rows": 1},
    "detector": {"init": "random", "network": NETWORK, "training": TRAINING | {"steps": 1}},
    "finetune": {"training": TRAINING | {"steps": 1}},
}


@pytest.fixture
def project(tmp_path, monkeypatch, repository) -> Path:
    shutil.copy(repository / "params.yaml", tmp_path)
    apply_overlay(tmp_path / "params.yaml", PARAMS, "test")
    download = tmp_path / "data/download"
    write_json(download / "categories.json", CATEGORIES)
    for shard, image_ids in IMAGES.items():
        write_images(download / f"images/train/{shard}.parquet", map(make_image, image_ids))
        captions = [{"image_id": k, "captions": CAPTIONS[shard]} for k in image_ids]
        write_json(download / f"captions/train/{shard}.json", captions)
    truth = annotate([1, 2, 3, 4, 5])
    write_json(download / "ground_truth/train.json", truth | {"annotated": True})
    save_small_albef(tmp_path / "data/vlm/model.safetensors", *small_albef())
    write_tensors(tmp_path / "data/vocabulary/embeddings.safetensors", {"embeddings": EMBEDDINGS})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OVIS_WORKERS", "1")
    return tmp_path


@pytest.fixture
def run(monkeypatch):
    def run_stage(stage: str, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [stage, *arguments])
        run_module(f"stages.{stage}")

    return run_stage


def sharded(run, stage: str) -> None:
    for shard in map(str, IMAGES):
        run(stage, shard)


def test_empty_shards_go_through_every_stage_and_change_nothing(project, run):
    sharded(run, "proposals")
    run("wspn")
    for stage in ("ranking", "activation", "pseudo_boxes", "pseudo_masks"):
        sharded(run, stage)
    for name in ("proposals", "ranking", "pseudo_boxes"):
        full, empty = (read_table(project / f"data/{name}/{k}.parquet") for k in (FULL, EMPTY))
        assert len(full) and not len(empty) and full.schema.types == empty.schema.types
    assert not len(read_table(project / f"data/pseudo_boxes/{UNNAMED}.parquet"))
    assert len(read_table(project / f"data/ranking/{UNNAMED}.parquet"))
    for shard in (EMPTY, UNNAMED):
        assert not len(read_tensors(project / f"data/activation/{shard}.safetensors")[0]["maps"])
        assert read_json(project / f"data/pseudo_masks/{shard}.json") == []

    written = {}
    for shards in ([FULL, EMPTY, UNNAMED], [EMPTY, UNNAMED, FULL], [FULL, UNNAMED]):
        apply_overlay(project / "params.yaml", {"shards": shards}, "test")
        for stage in ("pseudo_labels", "label_quality"):
            run(stage)
        for path in (
            "pseudo_labels/report.json",
            "label_quality/metrics.json",
            "pseudo_labels/metrics.json",
        ):
            content = (project / "data" / path).read_bytes()
            assert written.setdefault(path, content) == content
    run("supervision", "pseudo_masks")
    for stage in ("detector", "finetune"):
        run(stage)
        assert (project / f"data/{stage}/model.safetensors").is_file()
    report = read_json(project / "data/pseudo_labels/report.json")
    assert report["activation"]["images_without_target"] == 1
    assert report["labels_per_category"] == {"cup": 4, "dog": 4}


def test_an_empty_shard_adds_nothing_to_a_stream_of_images(project, run):
    sharded(run, "proposals")
    images = [project / f"data/download/images/train/{shard}.parquet" for shard in IMAGES]
    proposals = [project / f"data/proposals/{shard}.parquet" for shard in IMAGES]
    stream = ImageStream(images, proposals, {1, 2, 3, 4, 5})
    seen = [image.image_id for step in range(5) for image, _ in stream.batch(step, 1, 0)]
    assert sorted(seen) == [1, 2, 3, 4, 5]
