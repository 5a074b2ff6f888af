"""What the detector learns from: the stage that brings it, and the detector that takes it."""

from pathlib import Path

import pytest

import stages.detector.__main__ as detector
import stages.supervision.__main__ as bring_source
from stages.common.runtime.storage import read_json, write_json
from tests.support.tiny_detector import annotate, change_params, learned_from, make_repository


@pytest.fixture
def repository(tmp_path, monkeypatch):
    make_repository(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["stage"])


def bring(monkeypatch, *names: str) -> None:
    """Run the stage that brings each source to where the detector looks for it."""
    for name in names:
        monkeypatch.setattr("sys.argv", ["supervision", name])
        bring_source.main()
    monkeypatch.setattr("sys.argv", ["detector"])


def phrases(*image_ids: int) -> dict:
    content = annotate(list(image_ids))
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    return content


def test_each_source_has_its_classes_alone_and_others_go(repository, monkeypatch):
    write_json(Path("data/phrase_labels/annotations.json"), phrases(1, 2))
    change_params("detector", supervision=learned_from("base_masks", "phrases"))
    bring(monkeypatch, "base_masks", "phrases")
    assert sorted(path.name for path in Path("data/supervision").iterdir()) == [
        "base_masks.json",
        "phrases.json",
    ]
    own = read_json(Path("data/supervision/base_masks.json"))
    assert {a["category_id"] for a in own["annotations"]} == {3} and len(own["images"]) == 5
    both = read_json(Path("data/supervision/phrases.json"))
    assert {a["category_id"] for a in both["annotations"]} == {3, 5}
    monkeypatch.setattr("sys.argv", ["supervision", "novel_masks"])
    with pytest.raises(ValueError, match="has no novel_masks, only base_masks, phrases"):
        bring_source.main()


def test_an_oracle_of_boxes_has_no_masks_and_one_of_masks_has(repository, monkeypatch):
    for name, masked in (("novel_boxes", False), ("novel_masks", True)):
        change_params("detector", supervision=learned_from("base_masks", name))
        bring(monkeypatch, "base_masks", name)
        own = read_json(Path(f"data/supervision/{name}.json"))["annotations"]
        assert {a["category_id"] for a in own} == {5} and all("bbox" in a for a in own)
        assert {"segmentation" in a for a in own} == {masked}


def test_the_detector_learns_masks_of_some_and_boxes_of_others(repository, monkeypatch):
    write_json(Path("data/phrase_labels/annotations.json"), phrases(1, 2))
    change_params("detector", supervision=learned_from("base_masks", "phrases"))
    bring(monkeypatch, "base_masks", "phrases")
    detector.main()
    sources = read_json(Path("data/detector/metrics.json"))["sources"]
    assert {name: own["objects"] for name, own in sources.items()} == {
        "base_masks": 5,
        "phrases": 4,
    }


def test_without_a_source_of_novel_classes_the_softmax_has_none(repository, monkeypatch):
    """Else every image would teach that there is no novel object in it."""
    seen = []
    monkeypatch.setattr(
        detector, "train_and_save", lambda *own, vocabulary, **others: seen.append(vocabulary)
    )
    for names in (["base_masks"], ["base_masks", "novel_boxes"]):
        change_params("detector", supervision=learned_from(*names))
        bring(monkeypatch, *names)
        detector.main()
    assert seen == [[0], None]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (learned_from("phrases"), "none teaches a mask"),
        (learned_from("base_masks", "novel_boxes", "novel_masks"), "novel_masks has the boxes of"),
        (
            learned_from("base_masks", annotations="data/pseudo_labels/pseudo_annotations.json"),
            "base_masks: expected annotations data/download/ground_truth/train.json and classes",
        ),
        (
            learned_from("phrases", teaches={"class": 1.0, "box": 1.0, "mask": 1.0}),
            "phrases: has boxes and no masks; leave mask out",
        ),
        (learned_from("pseudo_masks", name="labels"), "expected one of pseudo_masks, phrases, "),
        (learned_from("base_masks", negatives="image"), "negatives to all, or architecture to fc"),
    ],
)
def test_sources_that_make_no_sense_are_refused_with_the_reason(repository, content, reason):
    change_params("detector", supervision=content)
    with pytest.raises(ValueError, match=rf"params\.yaml: detector.*{reason}"):
        detector.main()


def test_a_source_of_nothing_is_refused_before_anything_is_trained(repository, monkeypatch):
    crowds = phrases(1)
    crowds["annotations"] = [own | {"iscrowd": 1} for own in crowds["annotations"]]
    change_params("detector", supervision=learned_from("base_masks", "phrases"))
    for content in (crowds, crowds | {"annotations": []}):
        write_json(Path("data/phrase_labels/annotations.json"), content)
        with pytest.raises(
            ValueError,
            match=r"phrase_labels/annotations\.json: no object of .*metrics\.json counts",
        ):
            bring(monkeypatch, "phrases")
