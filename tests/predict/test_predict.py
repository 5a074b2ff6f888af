"""`python -m predict`: images of a folder to COCO JSON, overlays and a table."""

import json
import sys

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from predict.__main__ import main
from predict.images import list_images
from predict.overlay import draw_overlay
from stages.common.formats.images import decode_image, decode_upright
from stages.common.geometry.masks import decode_mask
from tests.support.images_folder import phone_jpeg
from tests.support.tiny_detector import draw
from tests.support.tiny_predictor import write_predictor


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_predictor(tmp_path_factory.mktemp("predictor"))


@pytest.fixture
def images(tmp_path):
    """Give a folder of a colour image, a wide grey one below, a broken one and a text."""
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    cv2.imwrite(str(folder / "b.jpg"), draw(1)[0])
    grey = np.random.default_rng(0).integers(0, 256, (50, 120), np.uint8)
    cv2.imwrite(str(folder / "below/a.PNG"), grey)
    (folder / "broken.png").write_bytes(b"not an image")
    (folder / "notes.txt").write_text("no image")
    return folder


def call(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments)])
    return main()


def test_folder_to_coco_overlays_and_table(monkeypatch, capsys, tmp_path, model, images):
    options = ["--model", model, "--names", "cup, hot dog", "--min-score", "0.1"]
    assert call(monkeypatch, images, *options, "--output", tmp_path / "out") == 0
    shown, told = capsys.readouterr()
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["b.jpg", "below/a.PNG"]
    assert [image["height"] for image in content["images"]] == [64, 50]
    assert [image["width"] for image in content["images"]] == [64, 120]
    assert content["categories"] == [{"id": 1, "name": "cup"}, {"id": 2, "name": "hot dog"}]
    assert content["broken"] == ["broken.png: cannot be decoded as an image (13 bytes)"]
    assert "broken: broken.png" in told
    assert "2 images, 1 broken, " in shown

    coco = COCO(tmp_path / "out/predictions.json")
    for image in content["images"]:
        own = coco.loadAnns(coco.getAnnIds(image["id"]))
        assert own
        for annotation in own:
            mask = decode_mask(annotation["segmentation"], (image["height"], image["width"]))
            assert mask.sum() == annotation["area"]
            assert annotation["score"] >= 0.1
    cups = sum(a["category_id"] == 1 for a in content["annotations"])
    row = next(line.split() for line in shown.splitlines() if line.startswith("cup "))
    assert row[1] == str(cups)
    for name in ("b.jpg", "below/a.PNG"):
        overlay = cv2.imread(str(tmp_path / "out/overlays" / name))
        assert max(overlay.shape) == 640


def test_one_image_with_the_names_of_the_training(monkeypatch, tmp_path, model, images):
    options = ["--model", model, "--output", tmp_path / "out", "--no-overlays"]
    assert call(monkeypatch, images / "b.jpg", *options) == 0
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [category["name"] for category in content["categories"]] == ["cup", "canine"]
    assert not (tmp_path / "out/overlays").exists()


def test_only_broken_images_fail(monkeypatch, capsys, tmp_path, model, images):
    options = ["--model", model, "--output", tmp_path / "out"]
    assert call(monkeypatch, images / "broken.png", *options) == 1
    assert "0 images, 1 broken" in capsys.readouterr().out


def test_wrong_input_is_told(monkeypatch, capsys, tmp_path, model, images):
    output = ["--output", tmp_path / "out"]
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ([tmp_path / "nowhere", "--model", model], "no such image or folder"),
        ([tmp_path / "empty", "--model", model], "no image in it"),
        ([images, "--model", tmp_path], "prompts.json: no such file"),
        ([images, "--model", model, "--names", "zebra"], "has never read 'zebra'"),
    ):
        assert call(monkeypatch, *arguments, *output) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unknown_words_can_be_allowed(monkeypatch, capsys, tmp_path, model, images):
    options = ["--names", "zebra,cup", "--allow-unknown", "--output", tmp_path / "out"]
    assert call(monkeypatch, images, "--model", model, *options) == 0
    assert "'zebra': unknown to the model: zebra" in capsys.readouterr().err


def test_overlay_keeps_the_shape_and_paints_the_mask():
    image = np.full((100, 200, 3), 128, np.uint8)
    counts = {"size": [100, 200], "counts": [100 * 50, 100 * 100, 100 * 50]}  # the middle half
    result = {"category_id": 7, "bbox": [50, 0, 100, 100], "score": 0.5, "segmentation": counts}
    overlay = draw_overlay(image, [result], {7: "cup"})
    assert overlay.shape == (320, 640, 3)
    assert (overlay[200, 20] == 128).all()
    assert not (overlay[200, 320] == 128).all()


def test_images_are_listed_by_name(images):
    assert list(list_images(images)) == ["b.jpg", "below/a.PNG", "broken.png"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_is_what_a_viewer_shows_and_stored_is_not_turned(orientation):
    encoded, shown = phone_jpeg(orientation=orientation)
    assert (decode_upright(encoded, "") == decode_image(shown, "")).all()
    assert decode_image(encoded, "").shape == (40, 64, 3)
    with pytest.raises(ValueError, match=r"a\.jpg: cannot be decoded as an image \(3 bytes\)"):
        decode_upright(b"not", "a.jpg")


def test_a_phones_image_is_searched_and_drawn_upright(monkeypatch, tmp_path, model):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, content in zip(("phone.jpg", "shown.png"), phone_jpeg(), strict=True):
        (folder / name).write_bytes(content)
    options = ["--model", model, "--min-score", "0.1", "--output", tmp_path / "out"]
    assert call(monkeypatch, folder, *options) == 0
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [(image["height"], image["width"]) for image in content["images"]] == [(64, 40)] * 2
    phone, shown = (
        [
            {key: a[key] for key in ("bbox", "score", "category_id", "segmentation")}
            for a in content["annotations"]
            if a["image_id"] == image["id"]
        ]
        for image in content["images"]
    )
    assert phone == shown != []
    overlays = [cv2.imread(str(tmp_path / "out/overlays" / f)) for f in ("phone.jpg", "shown.png")]
    assert [overlay.shape for overlay in overlays] == [(640, 400, 3)] * 2
    assert np.abs(overlays[0].astype(int) - overlays[1]).mean() < 12  # one of them is a JPEG
