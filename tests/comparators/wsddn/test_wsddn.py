"""Stage wsddn: class scores of proposals as detections."""

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from comparators.wsddn.detect import detect_classes
from flows.overlay import apply_overlay
from stages.common.formats.images import write_images
from stages.common.formats.result_files import read_results
from stages.models.proposals.base import class_scores
from stages.models.proposals.file import save_wspn
from stages.models.proposals.language import LanguageWspn
from stages.models.proposals.params import ViewSettings
from tests.support.held_out import search_held_out
from tests.support.images import noise, png_image
from tests.support.run_module import run_module
from tests.support.tiny_wspn import LANGUAGE_WSPN

VIEWS = ViewSettings(shorter_sides=[64], longer_side=64, flip=False)


def small_network() -> LanguageWspn:
    torch.manual_seed(0)
    return LanguageWspn(replace(LANGUAGE_WSPN, category_ids=[1, 2, 3], num_words=5)).eval()


def test_scores_sum_to_at_most_one_per_class():
    scores = class_scores(torch.randn(7, 3), torch.randn(7, 3))
    assert (scores.sum(0) <= 1).all()
    assert (scores >= 0).all()


def test_overlapping_boxes_of_a_class_are_suppressed_and_the_best_come_first():
    image = noise(0, 64, 64, 3)
    boxes = np.array([[4, 4, 30, 30], [4, 4, 30, 31], [36, 36, 60, 60]], np.float32)
    found, labels, scores = detect_classes(small_network(), image, boxes, VIEWS, 0.3, 100)
    assert (np.diff(scores) <= 0).all()
    for label in range(3):
        own = found[labels == label]
        assert len(own) == 2  # one of the first two, and the third
        assert (own[:, 0] == 36).sum() == 1
    assert len(detect_classes(small_network(), image, boxes, VIEWS, 0.3, 4)[0]) == 4


@pytest.fixture
def project(tmp_path, monkeypatch, repository):
    """Give a project whose splits have images of the same ids, one of them plain."""
    shutil.copy(repository / "params.yaml", tmp_path)
    for split, seed in (("test", 0), ("val", 1)):
        large = cv2.resize(noise(seed, 8, 8, 3), (64, 64), interpolation=cv2.INTER_NEAREST)
        images = [png_image(1, large), png_image(2, np.full_like(large, 90))]
        write_images(tmp_path / f"data/download/images/{split}.parquet", images)
    save_wspn(tmp_path / "data/wsddn_network/model.safetensors", small_network())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_split_that_is_measured_is_searched_and_named(project, monkeypatch):
    found = {}
    for split in ("test", "val"):
        apply_overlay(project / "params.yaml", {"evaluation": {"split": split}}, "test")
        search_held_out(monkeypatch, split)
        run_module("comparators.wsddn")
        path = project / "data/wsddn/predictions.json"
        found[split] = read_results(path, split, [1, 2], [1, 2])  # the plain one was searched too
        assert found[split]
        assert json.loads(path.read_text())["split"] == split
    assert found["test"] != found["val"]
