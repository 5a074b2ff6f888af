"""Localized Narratives: the official form, read, written, and simulated for scenes."""

import json
import unicodedata

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
from stages.common.geometry.masks import mask_box
from stages.download.examples import NarrativeFiles
from stages.download.narrative_shards import copy_narratives, write_narratives
from stages.download.params import AnnotatorParams
from stages.download.sources.scenes.classes import SCENE_CLASSES
from stages.download.sources.scenes.draw import Scene, draw_scene, scene_recipe
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
    params = AnnotatorParams(**(ANNOTATOR | changes))
    return write_narrative(scene_of(scene_seed), 7, params, 0.1, np.random.default_rng(seed))


def scene_of(seed: int) -> Scene:
    return draw_scene(scene_recipe(128), np.random.default_rng(seed))


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
        (line(annotator_id=10**400), r"annotator_id: expected a number, found 10{79}$"),
        (line(traces=[[{"x": 1, "y": 10**400, "t": 0}]]), "traces: expected lists of points"),
        (line(traces=[[{"x": [1], "y": [2], "t": [0]}]]), "traces: expected lists of points"),
        (line(traces=None), "traces: expected a list, found None"),
        (line(traces=[[{"x": 1, "y": 2}]]), "traces: expected lists of points .*'t'"),
        (line(traces=[[{"x": 1, "y": float("nan"), "t": 0}]]), "a point is not finite"),
        (line(traces=[3]), "traces: expected lists of points"),
        (
            line(timed_caption=[{"utterance": "a", "start_time": 3, "end_time": None}]),
            "end_time: expected a number, found None",
        ),
        (json.dumps({k: v for k, v in REAL[0].items() if k != "caption"}), "caption is missing"),
        (line(caption="a \ud83d cup"), "caption: has half of a character"),
        (line(voice_recording=7), "voice_recording: expected text, found 7"),
        (line(voice_recording=float("nan")), "voice_recording: expected text, found nan"),
        (
            line(traces=[[{"x": 0.5, "y": 0.5, "t": 0}, *[{"x": 320, "y": 1, "t": 1}] * 2]]),
            "traces: most points are outside the image; x and y are fractions",
        ),
        (
            line(timed_caption=[{"utterance": "In this", "start_time": 0, "end_time": 4400}]),
            "12 words take 4400 s; times are in seconds",
        ),
        (line(traces=[[{"x": 0.5, "y": 0.5, "t": 5000}]]), "12 words take 5000 s; times are in"),
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
    files = NarrativeFiles([source], lambda name: int(name[1:]), "x4", "download.some.key")
    told = copy_narratives(out, {"train/0": [1], "train/1": [3, 4]}, files, 0.5)
    assert told == "3 of 5 narratives are of 2 of 3 training images; 1 lines were broken"
    kept = [[n.image_id for n in NarrativeReader(0).read([out / f"train/{k}.jsonl"])] for k in "01"]
    assert kept == [["1", "1"], ["3"]]
    message = (
        r"all\.jsonl: no narr.* image_id is 'x1', .* would be 'x4'.* download\.some\.key of par"
    )
    with pytest.raises(ValueError, match=message):
        copy_narratives(out, {"train/0": [9]}, files, 0.5)
    message = "1 of 5 lines are not Localized Narratives, more than a fraction of 0.1"
    with pytest.raises(ValueError, match=message):
        copy_narratives(out, {"train/0": [1]}, files, 0.1)
    source.write_text("\n")
    with pytest.raises(ValueError, match=r"all\.jsonl: has no narrative; write one per line"):
        copy_narratives(out, {"train/0": [1]}, files, 0.1)


def test_texts_of_narratives_are_written_as_those_of_captions(tmp_path):
    """Else "hot  dog" were a hot dog in the caption, and a dog in the phrase."""
    decomposed = unicodedata.normalize("NFD", "a café\n with a hot  dog")
    spoken = [{"utterance": decomposed, "start_time": 0.0, "end_time": 1.0}]
    source, out = tmp_path / "all.jsonl", tmp_path / "out"
    source.write_text(line(caption=decomposed, timed_caption=spoken), encoding="utf-8")
    files = NarrativeFiles([source], lambda name: 1, "1", "download.some.key")
    copy_narratives(out, {"train/0": [1]}, files, 0.0)
    (own,) = NarrativeReader(0).read([out / "train/0.jsonl"])
    assert own.caption == own.utterances[0].text == "a café with a hot dog"


def test_a_byte_order_mark_breaks_no_line(tmp_path):
    (tmp_path / "a.jsonl").write_text(f"{line()}\n{line()}\n", encoding="utf-8-sig")
    for reader in (NarrativeReader(0.0), NarrativeReader(0.0)):
        assert len(list(reader.read([tmp_path / "a.jsonl"]))) == 2
        assert len(list(reader.read_captions([tmp_path / "a.jsonl"]))) == 2


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le"])
def test_lines_of_another_encoding_are_broken(tmp_path, encoding):
    text = json.dumps(REAL[0] | {"caption": "un café"}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_text(text + "\n", encoding=encoding)
    reader = NarrativeReader(1.0)
    assert list(reader.read([tmp_path / "a.jsonl"])) == []
    assert reader.broken[0] == f"{tmp_path}/a.jsonl, line 1: is not UTF-8; save the file as UTF-8"


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
    alone = [scene for scene in map(scene_of, range(40)) if len(scene.classes) == 1]
    assert alone
    for seed, scene in enumerate(alone):
        params = AnnotatorParams(**(ANNOTATOR | steady | {"loops_per_second": 3.0}))
        found = write_narrative(scene, 0, params, 0.0, np.random.default_rng(seed)).trace[:, :2]
        x0, y0, x1, y1 = mask_box(scene.masks[0])
        low, high = np.array([x0, y0]), np.array([x1, y1])
        assert (found.min(0) * 128 >= low - 0.1).all() and (found.max(0) * 128 <= high + 0.1).all()
        assert (np.ptp(found, axis=0) * 128 > 0.8 * (high - low)).all()


STEADY = {"noise": 0.0, "lag": 0.0, "wrong_object_fraction": 0.0}


def test_the_pointer_trails_the_voice_by_the_lag():
    for seed in (0, 1, 2):
        now, late = said(seed, seed, **STEADY), said(seed, seed, **(STEADY | {"lag": 1.0}))
        assert late.utterances == now.utterances
        shift = round(ANNOTATOR["points_per_second"])  # points per second of lag
        count = len(now.trace) - shift
        assert count > shift  # before and after, the pointer is still
        np.testing.assert_allclose(
            late.trace[shift : shift + count, :2], now.trace[:count, :2], atol=0.02
        )


def test_the_pointer_drifts_away_during_its_turn():
    still = {"lag_deviation": 0.0, "reach_deviation": 0.0, "jitter": 0.0, **STEADY, "noise": 1.0}
    alone = [seed for seed in range(40) if len(scene_of(seed).classes) == 1]
    assert alone
    for seed in alone:
        centred, drifting = said(seed, **still, drift=0.0), said(seed, **still, drift=0.3)
        points = min(len(centred.trace), len(drifting.trace))
        away = np.abs(drifting.trace[:points, :2] - centred.trace[:points, :2]).sum(axis=1)
        assert away[0] < 0.2 * away[-1]
        assert (np.diff(away) >= -0.0005).all()  # of rounding


@pytest.mark.parametrize(
    ("fraction", "low", "high"), [(0.0, 0, 0), (0.25, 60, 140), (1.0, 400, 400)]
)
def test_the_pointer_is_sometimes_in_another_object(fraction, low, high):
    """Of the object that is named first, told by where the pointer is at the start."""
    scene = next(scene for scene in map(scene_of, range(200)) if are_apart(scene))
    boxes = [mask_box(mask) / 128 for mask in scene.masks]
    names = [SCENE_CLASSES[kind].name for kind in scene.classes]
    params = AnnotatorParams(**(ANNOTATOR | STEADY | {"wrong_object_fraction": fraction}))
    wrong = 0
    for seed in range(400):
        told = write_narrative(scene, 7, params, 0.0, np.random.default_rng(seed))
        first = min((0, 1), key=lambda own: told.caption.index(names[own]))
        x, y, _ = told.trace[0]
        inside = [x0 <= x <= x1 and y0 <= y <= y1 for x0, y0, x1, y1 in boxes]
        assert sum(inside) == 1
        wrong += inside[1 - first]
    assert low <= wrong <= high


def are_apart(scene: Scene) -> bool:
    """Return whether a scene has two objects, of two classes, in boxes that do not touch."""
    if len(scene.classes) != 2 or scene.classes[0] == scene.classes[1]:
        return False
    (a0, b0, a1, b1), (c0, d0, c1, d1) = (mask_box(mask) for mask in scene.masks)
    return bool(a1 < c0 or c1 < a0 or b1 < d0 or d1 < b0)


def test_words_may_take_no_time_and_stand_together():
    utterances = [u for seed in range(20) for u in said(seed, seed).utterances]
    assert any(u.start == u.end for u in utterances)
    assert any(" " in u.text for u in utterances)
    assert isinstance(utterances[0], Utterance)
