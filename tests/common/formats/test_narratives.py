"""Localized Narratives: the official form, read, written, and simulated for scenes."""

import json

import numpy as np
import pytest

from stages.common.formats.narratives import (
    Narrative,
    NarrativeReader,
    Utterance,
    narrative_line,
    parse_narrative,
    split_sentences,
)
from stages.download.examples import NarrativeFiles
from stages.download.narrative_shards import copy_narratives, write_narratives
from stages.download.params import AnnotatorParams
from stages.download.sources.scenes.draw import draw_scene, scene_recipe
from stages.download.sources.scenes.narratives import write_narrative
from tests.support.annotator import ANNOTATOR

# Excerpts of real lines (google/localized-narratives, CC BY 4.0): its documentation's samples, and
# line 4414 of coco_val, which has no trace.
REAL = [
    {
        "dataset_id": "mscoco_val2017",
        "image_id": "137576",
        "annotator_id": 93,
        "caption": "In this image there are group of cows standing and eating th...",
        "timed_caption": [{"utterance": "In this", "start_time": 0.0, "end_time": 0.4}],
        "traces": [[{"x": 0.2086, "y": -0.0533, "t": 0.022}]],
        "voice_recording": "coco_val/coco_val_137576_93.ogg",
    },
    {
        "dataset_id": "ADE20k",
        "image_id": "ADE_val_00000175",
        "annotator_id": 125,
        "caption": "In this image on the left side I can see a bed and a window....",
        "timed_caption": [
            {"utterance": "In", "start_time": 0.0, "end_time": 0.0},
            {"utterance": "this", "start_time": 0.0, "end_time": 0.8},
        ],
        "traces": [[{"x": 0.6408, "y": 0.1371, "t": 0.013}]],
        "voice_recording": None,
    },
    {
        "dataset_id": "mscoco_val2017",
        "image_id": "381639",
        "annotator_id": 89,
        "caption": "In the image we can see girl standing and holding a doll in her hand.",
        "timed_caption": [
            {"utterance": "In the", "start_time": 0, "end_time": 0},
            {"utterance": "image", "start_time": 0, "end_time": 4.4},
        ],
        "traces": [],
        "voice_recording": None,
    },
]


def line(**changes) -> str:
    return json.dumps(REAL[0] | changes)


def said(scene_seed: int = 0, seed: int = 0, **changes) -> Narrative:
    scene = draw_scene(scene_recipe(128), np.random.default_rng(scene_seed))
    params = AnnotatorParams(**(ANNOTATOR | changes))
    return write_narrative(scene, 7, params, 0.1, np.random.default_rng(seed))


@pytest.mark.parametrize("content", REAL, ids=lambda content: content["image_id"])
def test_real_lines_are_read_and_written_as_they_were(content):
    narrative = parse_narrative(json.dumps(content))
    assert narrative.image_id == content["image_id"]
    assert [u.text for u in narrative.utterances] == [
        u["utterance"] for u in content["timed_caption"]
    ]
    assert len(narrative.trace) == sum(map(len, content["traces"]))
    assert json.loads(narrative_line(narrative)) == content


def test_points_outside_the_image_and_segments_are_kept():
    points = [[{"x": 1.04, "y": -0.1, "t": 0.5}], [], [{"x": 0.5, "y": 0.5, "t": 1}] * 2]
    narrative = parse_narrative(line(traces=points))
    assert [len(segment) for segment in narrative.segments] == [1, 0, 2]
    assert narrative.trace.tolist() == [[1.04, -0.1, 0.5], [0.5, 0.5, 1], [0.5, 0.5, 1]]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not valid JSON"),
        ('{"caption": "a", "caption": "b"}', "key 'caption' is given twice"),
        ("[]", "expected a mapping, found list"),
        (line(image_id=5), "image_id: expected text, found 5"),
        (line(annotator_id="x"), "annotator_id: expected a number, found 'x'"),
        (line(traces=None), "traces: expected a list, found None"),
        (line(traces=[[{"x": 1, "y": 2}]]), "traces: expected lists of points .*'t'"),
        (line(traces=[[{"x": 1, "y": float("nan"), "t": 0}]]), "a point is not finite"),
        (line(traces=[3]), "traces: expected lists of points"),
        (
            line(timed_caption=[{"utterance": "a", "start_time": 3, "end_time": None}]),
            "end_time: expected a number, found None",
        ),
        (json.dumps({k: v for k, v in REAL[0].items() if k != "caption"}), "caption is missing"),
    ],
)
def test_lines_of_another_form_are_named(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_narrative(text)


def test_broken_lines_are_counted_and_too_many_refused(tmp_path):
    one, two = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    one.write_text(f"{line()}\n\n{{\n{line(image_id='2')}\n")
    two.write_text(f"{line(image_id='3')}\n")
    reader = NarrativeReader(0.25)
    assert [n.image_id for n in reader.read([one, two])] == ["137576", "2", "3"]
    assert reader.num_lines == 4 and len(reader.broken) == 1
    assert reader.broken[0].startswith(f"{one}, line 3: not valid JSON")
    with pytest.raises(ValueError, match=r"1 of 4 lines .*a\.jsonl, line 3: .*fix"):
        list(NarrativeReader(0.2).read([one, two]))
    with pytest.raises(FileNotFoundError, match=r"c\.jsonl"):
        list(NarrativeReader(1.0).read([tmp_path / "c.jsonl"]))


def test_narratives_of_training_images_go_to_their_shards(tmp_path):
    source, out = tmp_path / "all.jsonl", tmp_path / "out"
    ids = ["x1", "x2", "x3", "x1"]
    source.write_text("".join(f"{line(image_id=k)}\n" for k in ids) + "broken\n")
    files = NarrativeFiles([source], lambda name: int(name[1:]))
    told = copy_narratives(out, {"train/0": [1], "train/1": [3, 4]}, files, 0.5)
    assert told == "3 of 5 narratives are of 2 of 3 training images; 1 lines were broken"
    kept = [[n.image_id for n in NarrativeReader(0).read([out / f"train/{k}.jsonl"])] for k in "01"]
    assert kept == [["1", "1"], ["3"]]
    with pytest.raises(ValueError, match="none of 5 narratives is of a training image"):
        copy_narratives(out, {"train/0": [9]}, files, 0.5)
    with pytest.raises(ValueError, match="1 of 5 lines are not Localized Narratives"):
        copy_narratives(out, {"train/0": [1]}, files, 0.1)


def test_files_of_shards_are_in_the_official_form(tmp_path):
    write_narratives(tmp_path / "0.jsonl", [said(), said(1)])
    (first, second) = (tmp_path / "0.jsonl").read_text().splitlines()
    assert list(json.loads(first)) == list(REAL[0])
    assert narrative_line(parse_narrative(second)) == second
    write_narratives(tmp_path / "0.jsonl", [])
    assert (tmp_path / "0.jsonl").read_bytes() == b""


def test_sentences():
    assert split_sentences("A cup. Is it red? Yes") == ["A cup.", "Is it red?", "Yes"]


@pytest.mark.parametrize("seed", range(8))
def test_what_is_said_and_shown_of_a_scene(seed):
    narrative = said(seed, seed)
    assert " ".join(u.text for u in narrative.utterances) == narrative.caption
    assert narrative.image_id == "7" and narrative.caption.endswith(".")
    starts = [u.start for u in narrative.utterances]
    assert starts == sorted(starts) and all(u.end >= u.start for u in narrative.utterances)
    for segment in narrative.segments:
        assert len(segment) and (np.diff(segment[:, 2]) > 0).all()
        assert (segment[:, :2] >= -0.1).all() and (segment[:, :2] <= 1.1).all()


def test_equal_generators_give_equal_narratives():
    assert narrative_line(said(3, 5)) == narrative_line(said(3, 5))
    assert narrative_line(said(3, 5)) != narrative_line(said(3, 6))


def test_noise_moves_the_pointer_and_changes_no_word():
    calm, wild = said(2, 4, noise=0.0), said(2, 4, noise=2.0)
    assert calm.utterances == wild.utterances == said(2, 4).utterances
    assert not np.array_equal(calm.trace, wild.trace)


def test_a_steady_pointer_goes_round_in_the_boxes_of_the_objects():
    """With no noise, no lag and a reach of 1 the points span the objects' boxes."""
    steady = {"noise": 0.0, "lag": 0.0, "reach": 1.0, "wrong_object_fraction": 0.0}
    for seed in range(40):
        scene = draw_scene(scene_recipe(128), np.random.default_rng(seed))
        if len(scene.classes) > 1:
            continue
        params = AnnotatorParams(**(ANNOTATOR | steady | {"loops_per_second": 3.0}))
        found = write_narrative(scene, 0, params, 0.0, np.random.default_rng(seed)).trace[:, :2]
        rows, columns = np.nonzero(scene.masks[0])
        low, high = np.array([columns.min(), rows.min()]), np.array([columns.max(), rows.max()]) + 1
        assert (found.min(0) * 128 >= low - 0.1).all() and (found.max(0) * 128 <= high + 0.1).all()
        assert (np.ptp(found, axis=0) * 128 > 0.8 * (high - low)).all()


def test_words_may_take_no_time_and_stand_together():
    utterances = [u for seed in range(20) for u in said(seed, seed).utterances]
    assert any(u.start == u.end for u in utterances)
    assert any(" " in u.text for u in utterances)
    assert isinstance(utterances[0], Utterance)
