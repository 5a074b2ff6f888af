"""Detections are scored on the images that they are of, or not at all."""

import json

import pytest

from stages.common.formats.result_files import read_results, write_results

FOUND = [{"image_id": 2, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}]


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "found.json"
    write_results(path, "val", (3, 2, 1), FOUND)
    assert json.loads(path.read_text()) == {
        "split": "val",
        "image_ids": [1, 2, 3],
        "results": FOUND,
    }
    assert read_results(path, "val", [1, 2, 3, 4], {1, 2}) == FOUND


@pytest.mark.parametrize(
    ("split", "listed", "measured", "message"),
    [
        ("val", [1, 2], [1, 2], r"on split 'test', but params\.yaml: evaluation\.split is 'val'"),
        ("test", [2, 5], [2], r"on 1 images that .*test\.json does not list, first image_id 1"),
        ("test", [1, 2, 3], [2, 3], r"1 images of .*test\.json were not searched, first .* 3"),
    ],
)
def test_other_images_are_told_in_one_line(tmp_path, split, listed, measured, message):
    path = tmp_path / "found.json"
    write_results(path, "test", [1, 2], FOUND)
    with pytest.raises(ValueError, match=message) as error:
        read_results(path, split, listed, measured)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [FOUND, {"results": FOUND}, {"annotations": FOUND}])
def test_a_file_that_does_not_say_what_it_is_of_is_refused(tmp_path, content):
    path = tmp_path / "found.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"does not say which images.*expected \{\"split\": …"):
        read_results(path, "test", [2], [2])


def test_results_of_an_image_that_was_not_searched_are_refused(tmp_path):
    path = tmp_path / "found.json"
    write_results(path, "test", [1], FOUND)
    with pytest.raises(ValueError, match="results of image_id 2, which is not among"):
        read_results(path, "test", [1, 2], [1])
