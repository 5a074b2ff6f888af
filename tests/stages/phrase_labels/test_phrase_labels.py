"""Labels, counts and the montage of the phrases that people said while they pointed."""

import numpy as np
import pytest
from ruamel.yaml import YAML

import stages.phrase_labels.__main__ as stage
from stages.common.formats.images import write_images
from stages.common.formats.narratives import Narrative, Utterance
from stages.common.runtime.storage import read_json, read_table, write_json
from stages.download.narrative_shards import write_narratives
from stages.phrases import __main__ as phrases
from tests.support.tiny_detector import CATEGORIES, make_image

PHRASES = {
    "parser": "pattern",
    "spacy_model": "en_core_web_sm",
    "window": {"before": 0.0, "after": 0.0},
    "box": {"trim_fraction": 0.0, "min_points": 2, "min_side": 0.02, "max_area": 0.9},
}
SIDES = [(0.1, 0.1, 0.3, 0.4), (0.5, 0.5, 0.9, 0.9), (0.2, 0.6, 0.4, 0.8)]


def narrative(image_id: int, words: str, first: int = 0) -> Narrative:
    """Return one where each word takes a second, in which the pointer goes round in a box.

    `first` is the place of the first word's box in `SIDES`, which follow each other cyclically.
    """
    spoken = [Utterance(word, k, k + 1) for k, word in enumerate(words.split())]
    points = [
        (x, y, second + 0.2 * k + 0.1)
        for second in range(len(spoken))
        for x0, y0, x1, y1 in [SIDES[(first + second) % 3]]
        for k, (x, y) in enumerate([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    ]
    return Narrative("mine", str(image_id), 1, words, tuple(spoken), (np.array(points),))


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "data/download/categories.json", CATEGORIES)
    return tmp_path


def run(
    folder, *shards: tuple[list[int], list[Narrative]], several: str = "crowd", rows: int = 2
) -> dict:
    """Return the labels of shards that have these images and narratives each."""
    labels = {"several": several, "montage_rows": rows}
    names = list(range(len(shards)))
    params = {"seed": 0, "shards": names, "phrases": PHRASES, "phrase_labels": labels}
    YAML(typ="safe").dump(params, folder / "params.yaml")
    for shard, (image_ids, narratives) in enumerate(shards):
        write_images(
            folder / f"data/download/images/train/{shard}.parquet", map(make_image, image_ids)
        )
        write_narratives(folder / f"data/download/narratives/train/{shard}.jsonl", narratives)
        phrases.main(str(shard))
    stage.main()
    return read_json(folder / "data/phrase_labels/annotations.json")


def outputs(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "data/phrase_labels").iterdir()}


def test_the_stage_writes_labels_counts_and_a_montage(workplace):
    first = narrative(1, "a disc and two box")
    second = narrative(3, "some line under a pale moon")
    content = run(workplace, ([1, 2], [first]), ([3], [second]))
    assert [image["id"] for image in content["images"]] == [1, 2, 3]
    disc, boxes = content["annotations"]  # the line's class is excluded, the moon none
    assert (disc["image_id"], disc["category_id"], disc["iscrowd"]) == (1, 3, 0)
    assert disc["bbox"] == pytest.approx([6.4, 6.4, 51.2, 51.2], abs=0.01)
    assert "segmentation" not in disc and disc["area"] == pytest.approx(2621.44, abs=0.5)
    assert (boxes["category_id"], boxes["iscrowd"], boxes["phrase"]) == (5, 1, 1)
    metrics = read_json(workplace / "data/phrase_labels/metrics.json")
    assert metrics["narratives"] == 2 and metrics["phrases"] == 4
    assert metrics["labels"] == {"base": 1, "novel": 0, "all": 1} and metrics["crowds"] == 1
    found = outputs(workplace)
    frequencies = found["frequencies.csv"].decode().splitlines()
    assert frequencies[0] == "phrase,category,count,boxes" and "pale moon,,1,1" in frequencies
    assert found["montage.png"][:4] == b"\x89PNG"


def test_shards_change_nothing(workplace):
    told = zip((1, 2, 2, 3), ("disc", "disc", "box", "box"), range(4), strict=True)
    said = [narrative(image_id, f"two box and a {name}", k) for image_id, name, k in told]
    content = run(workplace, ([1], said[:1]), ([2], said[1:3]), ([3], said[3:]), rows=3)
    assert [label["phrase"] for label in content["annotations"]] == list(range(8))
    in_three = outputs(workplace)
    run(workplace, ([1, 2, 3], said), rows=3)
    assert outputs(workplace) == in_three


def test_a_phrase_is_drawn_with_the_trace_of_its_own_narrative(workplace):
    """Three people say the same of an image, and their pointers go elsewhere."""
    said = [narrative(1, "a disc", first) for first in range(3)]
    run(workplace, ([1], said), rows=1)
    table = read_table(workplace / "data/phrases/0.parquet").to_pylist()
    paths = [workplace / "data/download/narratives/train/0.jsonl"]
    assert [row["narrative"] for row in table] == [0, 1, 2]
    for row, own in zip(table, said, strict=True):
        count, traces = stage.read_traces(paths, [row])
        assert count == 3 and traces[1].tolist() == own.trace.tolist()


def test_where_nobody_pointed_there_is_no_label(workplace):
    content = run(workplace, ([1, 2], []), ([3], []))
    assert content["annotations"] == [] and len(content["images"]) == 3
    assert read_json(workplace / "data/phrase_labels/metrics.json")["narratives"] == 0


def test_several_things_may_be_taken_for_one(workplace):
    content = run(workplace, ([1], [narrative(1, "two disc")]), several="box")
    assert [a["iscrowd"] for a in content["annotations"]] == [0]
