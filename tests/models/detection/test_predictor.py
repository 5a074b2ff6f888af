"""Any list of names, any images: the detector with its text encoder."""

import json

import numpy as np
import pytest
import torch

from stages.common.runtime.storage import read_tensors, write_tensors
from stages.models.detection.detector import load
from stages.models.detection.predictor import UnknownWordsError, load_predictor
from tests.support.tiny_detector import draw, predict
from tests.support.tiny_predictor import CATEGORIES, PROMPTS, write_predictor

SAME = draw(1)[0], draw(2)[0]
LARGE = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_predictor(tmp_path_factory.mktemp("predictor"))


@pytest.fixture(scope="module")
def predictor(folder):
    return load_predictor(folder)


def same(one, other):
    for field in ("boxes_xyxy", "labels", "scores", "masks"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


def test_names_of_the_training_give_what_evaluation_sees(folder, predictor):
    assert predictor.names == ["cup", "canine"]
    (expected,) = predict(load(folder / "detector.safetensors"), SAME, [[0, 1]])
    for one, other in zip(predictor.predict(SAME, predictor.names), expected, strict=True):
        assert len(one.labels) > 0
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        np.testing.assert_allclose(one.boxes_xyxy, other.boxes_xyxy, atol=1e-3)


def test_any_names_any_sizes_in_each_images_own_frame(predictor):
    names = ["hot dog", "red hat", "wall"]
    found = predictor.predict([SAME[0], LARGE, SAME[1]], names)
    assert [one.masks.shape[1:] for one in found] == [(64, 64), (90, 160), (64, 64)]
    for one in found:
        assert len(one.labels) > 0
        assert set(one.labels.tolist()) <= {0, 1, 2}
        assert one.boxes_xyxy.min() >= 0
    assert max(one.boxes_xyxy[:, 2].max() for one in found[1:2]) > 64


def test_an_image_does_not_depend_on_the_others_nor_a_call_on_earlier_ones(predictor):
    together = predictor.predict([SAME[0], LARGE], ["cup", "hat"])
    predictor.predict([LARGE], ["dog", "park", "wall"])
    same(predictor.predict([LARGE], ["cup", "hat"])[0], together[1])
    same(predictor.predict([SAME[0]], ["Cup ", "HAT"])[0], together[0])


def test_order_of_names_is_that_of_labels(predictor):
    one = predictor.predict([LARGE], ["cup", "hat", "dog"])[0]
    other = predictor.predict([LARGE], ["dog", "hat", "cup"])[0]
    np.testing.assert_allclose(np.sort(one.scores), np.sort(other.scores), atol=1e-5)
    assert sorted(one.labels.tolist()) == sorted((2 - other.labels).tolist())


def test_unknown_words_are_refused_by_name_or_allowed(predictor):
    with pytest.raises(UnknownWordsError, match=r"'zebra'.*'cupp' \(did you mean 'cup'\?\)"):
        predictor.predict([LARGE], ["red zebra", "cupp", "hat"])
    assert predictor.unknown_words(["red zebra", "hat"]) == {"red zebra": ["zebra"]}
    assert predictor.embed(["red zebra"], allow_unknown=True).isfinite().all()


def test_class_of_the_training_goes_by_its_known_synonym(predictor):
    assert predictor.unknown_words(["canine"]) == {}
    torch.testing.assert_close(predictor.embed(["canine"]), predictor.embed(["dog"]))


@pytest.mark.parametrize("names", [[], ["cup", " "], ["cup", "Cup"], ["cup", "\u200b"]])
def test_names_must_be_different_and_not_blank(predictor, names):
    with pytest.raises(ValueError, match="expected different words"):
        predictor.predict([LARGE], names)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("prompts.json", PROMPTS | {"templates": ["some {} in the park"]}),
        ("prompts.json", PROMPTS | {"normalise": False}),
        ("categories.json", CATEGORIES[:1]),
    ],
)
def test_files_of_two_trainings_are_refused(tmp_path, file, content):
    folder = write_predictor(tmp_path)
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="not those that the detector was trained with"):
        load_predictor(folder)


def test_embeddings_as_long_as_the_encoder_gives_them(tmp_path):
    dot = {"similarity": "dot", "temperature": 1.0, "background": "zero"}
    folder = write_predictor(tmp_path, {"classifier": dot}, {"normalise": False})
    predictor = load_predictor(folder)
    assert (predictor.embed(predictor.names).norm(dim=1) > 2).all()
    (expected,) = predict(load(folder / "detector.safetensors"), SAME[:1], [[0, 1]])
    same(predictor.predict(SAME[:1], predictor.names)[0], expected[0])


@pytest.mark.parametrize("scale", [1e3, 1e-4])
def test_bound_on_other_embeddings_grows_with_their_length(tmp_path, scale):
    folder = write_predictor(tmp_path, prompts={"normalise": False})
    multiply(folder / "text_encoder.safetensors", ("text_norm.weight", "text_norm.bias"), scale)
    learned = ("regions.box_predictor.classifier.embeddings",)
    multiply(folder / "detector.safetensors", learned, scale * (1 + 2e-4))  # as a GPU might round
    load_predictor(folder)
    multiply(folder / "detector.safetensors", learned, 1.02)
    with pytest.raises(ValueError, match="not those that the detector was trained with"):
        load_predictor(folder)


def multiply(path, names, factor):
    tensors, facts = read_tensors(path)
    write_tensors(path, tensors | {name: tensors[name] * factor for name in names}, facts)


def test_wrong_prompts_name_the_file(tmp_path):
    folder = write_predictor(tmp_path)
    (folder / "prompts.json").write_text(json.dumps(PROMPTS | {"pooling": "max"}))
    with pytest.raises(ValueError, match=r"(?s)prompts\.json: .*pooling"):
        load_predictor(folder)
