"""`python -m predict`: images of a folder to COCO JSON, overlays and a table."""

import io
import json
import os
import re
import shutil
import sys

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from predict.__main__ import main
from predict.images import find_images
from predict.overlay import draw_overlay
from stages.common.formats.images import decode_image, decode_upright
from stages.common.geometry.masks import decode_mask
from tests.support.images import png_of
from tests.support.images_folder import phone_jpeg
from tests.support.mounts import small_files
from tests.support.tiny_detector import draw
from tests.support.tiny_predictor import CATEGORIES, write_predictor


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
    assert content["broken"] == ["broken.png: cannot be decoded as an image (12 bytes)"]
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
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone/a.heic").touch()
    for arguments, words in (
        ([tmp_path / "nowhere", "--model", model], "no such image or folder"),
        ([tmp_path / "empty", "--model", model], "no image in it"),
        ([tmp_path / "phone", "--model", model], "no image in it (.bmp, .jfif, .jpeg, .jpg,"),
        ([tmp_path / "phone", "--model", model], "; not read: a.heic\n"),
        ([images, "--model", tmp_path], "prompts.json: no such file"),
        ([images, "--model", model, "--names", "zebra"], "has never read 'zebra'"),
    ):
        assert call(monkeypatch, *arguments, *output) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("output", [".", "below/out"])
def test_overlays_are_not_written_among_the_images(monkeypatch, capsys, model, images, output):
    """The next call would search them."""
    monkeypatch.chdir(images)
    options = ["--model", model, "--output", output]
    assert call(monkeypatch, images, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"predict: --output {output}: lies in {images}, ")
    assert sorted(os.listdir()) == ["b.jpg", "below", "broken.png", "notes.txt"]
    assert call(monkeypatch, images, *options, "--no-overlays") == 0
    assert call(monkeypatch, images / "b.jpg", *options) == 0


def test_a_full_disk_is_one_line(monkeypatch, capsys, tmp_path, model, images):
    options = ["--model", model, "--output", tmp_path / "out"]
    with small_files(100):
        code = call(monkeypatch, images / "b.jpg", *options)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "predict:" in line]
    assert (code, "cannot write" in line and "File too large" in line) == (1, True)
    assert call(monkeypatch, images / "b.jpg", *options) == 0


def test_a_model_of_an_earlier_version_is_told(monkeypatch, capsys, tmp_path, model, images):
    older = shutil.copytree(model, tmp_path / "older")
    (older / "inference.json").unlink()
    assert call(monkeypatch, images, "--model", older, "--output", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "inference.json: no such file; a predictor of an earlier version has to be" in line


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("prompts.json", "[]"),
        ("prompts.json", "{}"),
        ("inference.json", "{}"),
        ("categories.json", "null"),
        ("categories.json", "[{}]"),
        ("detector.safetensors", "[]"),
        ("text_encoder.safetensors", None),
    ],
)
def test_a_broken_file_of_the_model_is_named(
    monkeypatch, capsys, tmp_path, model, images, file, text
):
    other = tmp_path / "model"
    shutil.copytree(model, other)
    if text is None:
        shutil.copy(model / "detector.safetensors", other / file)
    else:
        (other / file).write_text(text)
    assert call(monkeypatch, images, "--model", other, "--output", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"predict: {other / file}: ")


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
    found = find_images(images)
    assert list(found.images) == ["b.jpg", "below/a.PNG", "broken.png"]
    assert found.others == ["notes.txt"]


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


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.png", cv2.imencode(".png", np.zeros((1, 500), np.uint8))[1].tobytes(), r"500 × 1 pix"),
        ("a.png", cv2.imencode(".png", np.zeros((60, 2), np.uint8))[1].tobytes(), r"2 × 60 pixels"),
        ("a.png", png_of(40_000, 40_000), r"OpenCV refuses it: .*CV_IO_MAX_IMAGE_PIXELS"),
        ("a.jpg", b"", r"cannot be decoded as an image \(0 bytes\)"),
    ],
    ids=["low", "narrow", "huge", "empty"],
)
def test_a_broken_image_is_named_and_the_others_go_on(
    monkeypatch, capsys, tmp_path, model, images, name, content, reason
):
    (images / name).write_bytes(content)
    options = ["--model", model, "--output", tmp_path / "out"]
    assert call(monkeypatch, images, *options) == 0
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["b.jpg", "below/a.PNG"]
    assert re.search(f"broken: {re.escape(name)}: .*{reason}", capsys.readouterr().err)


@pytest.mark.parametrize("shape", [(1, 1), (1, 25), (25, 1), (3, 70), (70, 3), (12, 300)])
def test_images_as_thin_as_can_be_are_searched_and_drawn(
    monkeypatch, capsys, tmp_path, model, shape
):
    cv2.imwrite(str(tmp_path / "thin.png"), np.zeros((*shape, 3), np.uint8))
    options = ["--model", model, "--output", tmp_path / "out"]
    assert call(monkeypatch, tmp_path / "thin.png", *options) == 0
    assert "1 images, 0 broken" in capsys.readouterr().out
    assert (tmp_path / "out/overlays/thin.png").is_file()


@pytest.mark.parametrize(
    ("name", "overlay"),
    [
        ("photo.jfif", "photo.jfif.jpg"),
        ("photo", "photo.jpg"),
        ("photo.JPEG", "photo.JPEG"),
        ("photo.tif", "photo.tif.jpg"),
        (b"caf\xe9.jpg", "caf%E9.jpg"),
        ("cafe\u0301.jpg", "caf\u00e9.jpg"),
    ],
)
def test_an_image_of_any_name_is_listed_and_drawn(monkeypatch, tmp_path, model, name, overlay):
    image = tmp_path / "in" / os.fsdecode(name)
    image.parent.mkdir()
    image.write_bytes(cv2.imencode(".png", draw(1)[0])[1].tobytes())
    # A file without a suffix is an image if it is named, not if its folder is.
    asked = image.parent if image.suffix else image
    assert call(monkeypatch, asked, "--model", model, "--output", tmp_path / "out") == 0
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [f"{image['file_name']}.jpg"[:4] for image in content["images"]] == [overlay[:4]]
    assert os.listdir(tmp_path / "out/overlays") == [overlay]


def test_what_is_not_read_is_counted_and_named(monkeypatch, capsys, tmp_path, model, images):
    for name in ("a.heic", "below/b.avif", "c.gif", "._b.jpg", ".DS_Store"):
        (images / name).write_bytes(b"any")
    options = ["--model", model, "--output", tmp_path / "out"]
    assert call(monkeypatch, images, *options) == 0
    told = capsys.readouterr().err
    assert "not read, 5 files of other formats: ._b.jpg, a.heic, below/b.avif, c.gif, no" in told


def test_linked_folders_are_searched_once(tmp_path, images):
    other = tmp_path / "other"
    other.mkdir()
    cv2.imwrite(str(other / "far.png"), draw(1)[0])
    (images / "link").symlink_to(other)
    (other / "back").symlink_to(images)
    (images / "nowhere.jpg").symlink_to(tmp_path / "gone.jpg")
    names = list(find_images(images).images)
    assert names == ["b.jpg", "below/a.PNG", "broken.png", "link/far.png"]


def test_overlays_are_those_of_the_last_call(monkeypatch, tmp_path, model, images):
    out = tmp_path / "out"
    (out / "overlays").mkdir(parents=True)
    (out / "overlays/of another.txt").write_text("not ours: no predictions are beside it")
    options = ["--model", model, "--output", out]
    assert call(monkeypatch, images / "b.jpg", *options) == 0
    assert sorted(os.listdir(out / "overlays")) == ["b.jpg", "of another.txt"]
    assert call(monkeypatch, images / "below", *options) == 0
    assert os.listdir(out / "overlays") == ["a.PNG"]


@pytest.mark.parametrize(
    ("names", "taken", "note"),
    [
        ("cup,cup", ["cup"], True),
        ("cup,Cup, wall ", ["cup", "wall"], True),
        ("cup,", ["cup"], True),
        ("hot  dog,HOT DOG", ["hot dog"], True),
        ("cup,wall", ["cup", "wall"], False),
    ],
)
def test_empty_and_repeated_names_are_dropped(
    monkeypatch, capsys, tmp_path, model, images, names, taken, note
):
    options = ["--model", model, "--output", tmp_path / "out", "--no-overlays", "--names", names]
    assert call(monkeypatch, images / "b.jpg", *options) == 0
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [category["name"] for category in content["categories"]] == taken
    told = f"empty and repeated names are left out; looking for {', '.join(taken)}\n"
    assert (told in capsys.readouterr().err) == note


def test_names_that_are_all_empty_are_refused(monkeypatch, capsys, tmp_path, model, images):
    with pytest.raises(SystemExit, match="2"):
        call(monkeypatch, images, "--model", model, "--names", " , ")
    assert "--names: expected names with commas between, found ' , '" in capsys.readouterr().err


def test_names_that_cannot_be_seen_are_refused(monkeypatch, capsys, tmp_path, model, images):
    options = ["--model", model, "--output", tmp_path / "out"]
    assert call(monkeypatch, images, *options, "--names", "cup,\u200b") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "predict: names: expected different words or phrases, found ['cup', '\\u200b']"


def test_the_models_own_names_need_not_be_known(monkeypatch, capsys, tmp_path):
    """A class that no caption named was trained as [UNK]; the model can still be asked for it."""
    strange = {"id": 7, "name": "zebra", "split": "novel", "forms": ["zebra"]}
    model = write_predictor(tmp_path / "model", categories=[*CATEGORIES, strange])
    cv2.imwrite(str(tmp_path / "a.png"), draw(1)[0])
    options = ["--model", model, "--output", tmp_path / "out"]
    assert call(monkeypatch, tmp_path / "a.png", *options) == 0
    shown, told = capsys.readouterr()
    assert "'zebra': unknown to the model: zebra" in told and "zebra" in shown
    assert call(monkeypatch, tmp_path / "a.png", *options, "--names", "zebra") == 2


def test_a_home_folder_is_found_in_every_shell(monkeypatch, tmp_path, model, images):
    monkeypatch.setenv("HOME", str(tmp_path))
    options = ["--model", model, "--output", "~/out", "--no-overlays"]
    assert call(monkeypatch, "~/images", *options) == 0
    assert (tmp_path / "out/predictions.json").is_file()


@pytest.mark.parametrize(
    ("variables", "output", "words"),
    [
        ({}, "file/out", "file/out"),
        ({}, "file", "file"),
        ({"DEVICE": "gpu"}, "out", "DEVICE='gpu': expected one of auto, cuda, mps, cpu"),
    ],
)
def test_what_cannot_work_is_one_line_before_anything(
    monkeypatch, capsys, tmp_path, model, images, variables, output, words
):
    (tmp_path / "file").write_text("no folder")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    options = ["--model", model, "--output", tmp_path / output]
    assert call(monkeypatch, images, *options) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1


def test_the_table_fits_the_terminal(monkeypatch, capsys, tmp_path, model, images):
    monkeypatch.setenv("COLUMNS", "80")
    options = ["--model", model, "--output", tmp_path / "out", "--allow-unknown"]
    assert call(monkeypatch, images / "b.jpg", *options, "--names", f"cup,{'x' * 400}") == 0
    table = capsys.readouterr().out.splitlines()[:3]
    assert [len(line) for line in table] == [80] * 3 and "x…" in table[2]


def test_a_terminal_of_ascii_gets_the_table(monkeypatch, tmp_path, model, images):
    """As with LC_ALL=C PYTHONUTF8=0."""
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    options = ["--model", model, "--output", tmp_path / "out", "--min-score", "1"]
    assert call(monkeypatch, images / "b.jpg", *options) == 0
    terminal.flush()
    assert rb"\u2013" in terminal.buffer.getvalue()
