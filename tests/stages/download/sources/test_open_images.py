import json
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from stages.common.formats.captions import MentionFinder, normalise
from stages.common.geometry.masks import decode_mask
from stages.download.__main__ import main
from stages.download.examples import Example, Skipped, Source
from stages.download.integrity import check_categories
from stages.download.photographs import hashed_id, is_held_out
from stages.download.sources.open_images.classes import BASE, NOVEL, open_images_categories
from stages.download.sources.open_images.files import (
    CLASSES,
    HIERARCHY,
    narratives,
    official_urls,
    table,
)
from stages.download.sources.open_images.hierarchy import read_labels, verified_classes
from stages.download.sources.open_images.index import BoxRow, MaskRow
from stages.download.sources.open_images.source import (
    VAL,
    OpenImagesTask,
    join_objects,
    open_images_source,
)
from stages.download.sources.open_images.words import OTHERS, SYNONYMS
from tests.support.download_params import write_download_params
from tests.support.open_images_folder import (
    HW,
    NAMES,
    TEST,
    TRAIN,
    open_images_params,
    write_open_images,
)

IDS = {name: number for number, name in enumerate(NAMES, 1)}


@pytest.fixture
def folder(tmp_path):
    return write_open_images(tmp_path / "open-images")


@pytest.fixture
def scratch(tmp_path):
    path = tmp_path / "scratch"
    path.mkdir()
    return path


def make_all(folder: Path, scratch: Path, split: str) -> dict[str, Example | Skipped]:
    source = open_images_source(open_images_params(folder), scratch, 0.0)
    return {task.name: source.make(task) for task in source.tasks[split]}


def test_classes_are_the_300_and_ids_follow_their_order():
    assert (len(BASE), len(NOVEL), len({*BASE, *NOVEL})) == (200, 100, 300)
    categories = open_images_categories()
    check_categories(categories)
    assert [(c.id, c.name) for c in categories[:300]] == [(k, name) for name, k in IDS.items()]
    assert {c.split for c in categories[:200]} == {"base"}
    assert {c.split for c in categories[200:300]} == {"novel"}
    assert {c.split for c in categories[300:]} == {"excluded"}


def test_every_word_is_of_one_class_and_every_class_is_one_of_ours():
    assert set(SYNONYMS) <= set(NAMES) and not set(OTHERS) & set(NAMES)
    words = SYNONYMS | OTHERS
    owners = Counter(word for own in words.values() for word in own)
    owners.update(name.lower() for name in {*NAMES, *OTHERS})
    assert [word for word, count in owners.items() if count > 1] == []
    assert [word for word in owners if normalise(word) != word] == []  # else it is never found
    MentionFinder(open_images_categories())  # plurals, too, name one class


def test_the_other_division_has_the_classes_of_coco_for_base():
    categories = open_images_categories("coco")
    counts = Counter(category.split for category in categories)
    assert (counts["base"], counts["novel"]) == (60, 240)
    same = [open_images_categories(division) for division in ("frequency", "coco")]
    assert len({frozenset((c.name, c.forms) for c in every) for every in same}) == 1


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (
            "Two polar bears with hot dogs, jeans and a license plate",
            {"Polar bear", "Hot dog", "Jeans", "Vehicle registration plate"},
        ),
        ("cows and an aeroplane", {"Cattle", "Airplane"}),
        (
            "Doughnuts, donuts and tomatoes in the microwave",
            {"Doughnut", "Tomato", "Microwave oven"},
        ),
        ("a faucet below statues, scarves on a sofa", {"Tap", "Sculpture", "Scarf", "Couch"}),
        ("a motorbike, a soccer ball, black pants", {"Motorcycle", "Football", "Trousers"}),
        ("a football player on a football field", {"Person"}),
        ("persons in t-shirts with cups", {"Person", "Shirt", "Coffee cup"}),
        ("a coffee mug on the coffee table", {"Mug"}),
        ("an orange color wall, an orange", {"Orange"}),
        ("oranges in orange juice", {"Orange", "Juice"}),
        ("a dog bed, a trash can and a flower pot", {"Dog bed", "Waste container", "Flowerpot"}),
        ("a cricket bat, a wine glass and a fish tank", set()),
        ("bikes near a phone", set()),
    ],
)
def test_words_people_use(caption, expected):
    found = MentionFinder(open_images_categories()).classes([caption])
    assert {NAMES[category_id - 1] for category_id in found} == expected


def test_what_is_none_of_the_classes_is_only_kept_from_them(folder, scratch):
    source = open_images_source(open_images_params(folder), scratch, 0.0)
    assert {c.name for c in source.categories if c.split == "excluded"} == set(OTHERS)


def test_splits_are_by_narrative_and_verified_label(folder, scratch):
    source = open_images_source(open_images_params(folder), scratch, 0.0)
    names = {split: {task.name for task in tasks} for split, tasks in source.tasks.items()}
    assert names["train"] == names["pairs"] == set(TRAIN[:3])  # nobody narrated the fourth
    assert names["val"] == set() and names["test"] == set(TEST[:2])
    ids = [task.image_id for task in source.tasks["train"]]
    assert ids == sorted(hashed_id(name) for name in TRAIN[:3]) and max(ids) < 2**53


def test_each_sentence_of_a_narrative_is_a_caption(folder, scratch):
    first = folder / narratives("train")[0]
    text = "In this image  there is a cat. It sits, as we see, on a mat!\n Is that 2.5 bears?"
    first.write_text(json.dumps({"image_id": TRAIN[3], "caption": text}) + "\n")
    made = make_all(folder, scratch, "train")[TRAIN[3]]
    assert made.captions == (
        "In this image there is a cat.",
        "It sits, as we see, on a mat!",
        "Is that 2.5 bears?",
    )


def test_val_is_held_out_and_limits_take_the_smallest_ids(folder, scratch):
    fraction = 0.5
    changes = {"val_fraction": fraction}
    params = open_images_params(folder, pairs=1, test=1).model_copy(update=changes)
    source = open_images_source(params, scratch, 0.0)
    held = {name for name in TRAIN[:3] if is_held_out(hashed_id(name), VAL, fraction)}
    assert {task.name for task in source.tasks["val"]} == held
    assert {task.name for task in source.tasks["train"]} == set(TRAIN[:3]) - held
    assert [task.name for task in source.tasks["test"]] == [min(TEST[:2], key=hashed_id)]


def test_objects_have_their_outlines_scaled_to_the_image(folder, scratch):
    made = make_all(folder, scratch, "train")[TRAIN[0]]
    assert made.captions == ("Two cats and a bear.", "A cat")
    outlined, boxed = made.annotations
    assert (outlined["category_id"], outlined["iscrowd"]) == (IDS["Cat"], 0)
    assert outlined["bbox"] == [6.0, 5.0, 24.0, 20.0]
    mask = decode_mask(outlined["segmentation"], HW)
    assert mask[5:25, 6:30].all() and mask.sum() == outlined["area"] == 480
    assert boxed["bbox"] == [30.0, 10.0, 30.0, 20.0] and boxed["area"] == 600
    assert not decode_mask(boxed["segmentation"], HW).any()


def test_groups_are_crowds_and_outlines_without_box_count(folder, scratch):
    examples = make_all(folder, scratch, "train")
    bear, group = examples[TRAIN[1]].annotations  # the class outside the 300 is left out
    assert (bear["category_id"], bear["iscrowd"]) == (IDS["Brown bear"], 0)
    assert (group["category_id"], group["iscrowd"]) == (IDS["Cat"], 1)
    (alpaca,) = examples[TRAIN[2]].annotations
    assert (alpaca["category_id"], alpaca["iscrowd"], alpaca["area"]) == (IDS["Alpaca"], 0, 480)


def test_verified_classes_follow_the_hierarchy(folder, scratch):
    examples = make_all(folder, scratch, "test")
    there = {"Polar bear", "Bear", "Carnivore", "Cat"}
    assert examples[TEST[0]].verified == {IDS[name] for name in there}
    absent = {"Bear", "Brown bear", "Polar bear", "Alpaca"}
    assert examples[TEST[1]].verified == {IDS[name] for name in absent}
    assert verified_classes([(1, True), (2, False)], {5}, {5: {6}, 7: {2}}) == {1, 2, 5, 6, 7}


def test_ancestors_are_the_classes_above(folder, scratch):
    source = open_images_source(open_images_params(folder), scratch, 0.0)
    bear, carnivore = IDS["Bear"], IDS["Carnivore"]
    assert source.ancestors == {
        IDS["Brown bear"]: {bear, carnivore},
        IDS["Polar bear"]: {bear, carnivore},
        bear: {carnivore},
        IDS["Cat"]: {carnivore},
    }


def test_an_outline_goes_to_one_box_only():
    box, near = (0.1, 0.1, 0.5, 0.5), (0.1009, 0.1, 0.5, 0.4991)
    boxes = [BoxRow(1, box, False), BoxRow(1, box, False), BoxRow(2, box, False)]
    masks = [MaskRow(1, near, "a", None), MaskRow(2, (0.2, 0.1, 0.5, 0.5), "b", None)]
    assert [(b.category_id, m and m.file_name) for b, m in join_objects(boxes, masks)] == [
        (1, "a"),
        (1, None),
        (2, None),
        (2, "b"),
    ]


def test_looking_up_tells_what_making_tells(folder, scratch):
    (folder / "train" / f"{TRAIN[0]}.jpg").unlink()
    source = open_images_source(open_images_params(folder), scratch, 0.0)
    for tasks in source.tasks.values():
        found = [source.look_up(task) for task in tasks]
        assert found == [getattr(made, "listed", made) for made in map(source.make, tasks)]


def test_missing_images_are_skipped(folder, scratch):
    (folder / "train" / f"{TRAIN[0]}.jpg").unlink()
    assert make_all(folder, scratch, "train")[TRAIN[0]].reason == "no such file"


def second(folder: Path, scratch: Path) -> tuple[Source, OpenImagesTask]:
    """Index the tables; return the source and the task of the second training image."""
    source = open_images_source(open_images_params(folder), scratch, 0.0)
    (task,) = (task for task in source.tasks["train"] if task.name == TRAIN[1])
    return source, task


def test_workers_never_list_an_archive(folder, scratch, monkeypatch):
    source, task = second(folder, scratch)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    bear, _ = source.make(task).annotations
    assert bear["area"] == 600


def test_missing_archives_are_named_with_the_fix(folder, scratch):
    archive = folder / f"train-masks-{TRAIN[1][0]}.zip"
    source, task = second(folder, scratch)
    archive.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-masks-3\.zip"):
        source.make(task)
    shutil.rmtree(scratch)
    scratch.mkdir()
    source, task = second(folder, scratch)
    for call in (source.look_up, source.make):
        message = r"train-masks-3\.zip: it or its member .*fetch it"
        with pytest.raises(FileNotFoundError, match=message):
            call(task)


def test_broken_archives_are_found_before_any_image_is_read(folder, scratch):
    archive = folder / f"train-masks-{TRAIN[1][0]}.zip"
    archive.write_bytes(archive.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"train-masks-3\.zip: .*not a zip file; remove the arch"):
        open_images_source(open_images_params(folder), scratch, 0.0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            table("boxes", "train"),
            None,
            r"oidv6-train-annotations-bbox\.csv: not found; `python -m",
        ),
        (table("masks", "validation"), "ImageID,X\n", r"has no column LabelName, BoxXMin"),
        (
            table("boxes", "train"),
            "ImageID,LabelName,XMin,YMin,XMax,YMax,IsGroupOf\nab,/m/0001,0.1,nan,0.3,0.4,0\n",
            r"train-annotations-bbox\.csv: ImageID ab: expected finite .* 0\.1, nan, 0\.3, 0",
        ),
        (
            table("boxes", "train"),
            "ImageID,LabelName,XMin,YMin,XMax,YMax,IsGroupOf\nab,/m/0001,10,20,300,40,0\n",
            r"bbox\.csv: ImageID ab: expected XMin ≤ XMax and .* found 10, 20, 300, 40",
        ),
        (
            table("masks", "train"),
            "ImageID,LabelName,BoxXMin,BoxYMin,BoxXMax,BoxYMax,MaskPath\nab,/m/0001,.5,0,.1,1,a\n",
            r"segmentation\.csv: ImageID ab: expected XMin ≤ XMax and .* found \.5, 0, \.1, 1",
        ),
        (
            table("labels", "train"),
            "ImageID,LabelName,Confidence\ncaf\xe9,/m/0001,1\n".encode("cp1252"),
            r"boxable\.csv, near line 0: 'utf-8' codec can't decode byte 0xe9",
        ),
        pytest.param(
            table("labels", "train"),
            "ImageID,LabelName,Confidence\n" + "a" * 200_000,
            r"boxable\.csv, near line 2: field larger than field limit",
            id="a long field",
        ),
        (CLASSES, b"/m/1,Caf\xe9\n", r"segmentable\.csv: byte 8 \(0xe9\) is not utf-8"),
        (
            table("labels", "validation"),
            "ImageID,LabelName,Confidence\n3f,/m/0001,yes\n",
            r"imagelabels-boxable\.csv: ImageID 3f: expected finite numbers, found yes",
        ),
        (table("images", "train"), "ImageID,Subset\n\n", r"line 2: cut short; fetch it again"),
        (table("images", "train"), "ImageID\n../../a\n", r"'\.\./\.\./a' is not 16 hexadecimal"),
        (CLASSES, "/m/1,Cat\n", r"does not describe 299 of the 300 classes"),
        (HIERARCHY, '{"Subcategory": []}', r"not a class hierarchy: a node lacks LabelName"),
        (
            "open_images_train_v6_localized_narratives-00003-of-00010.jsonl",
            '{"image_id": "a"}\n',
            r"1 of 5 lines .*00003-of-00010\.jsonl, line 1: caption is .*max_skipped_fraction",
        ),
        (
            "open_images_train_v6_localized_narratives-00003-of-00010.jsonl",
            None,
            r"00003-of-00010\.jsonl: not found; `python -m fetch open_images` fetches what",
        ),
    ],
)
def test_files_of_another_form_are_refused(folder, scratch, name, content, message):
    (folder / name).unlink()
    if content is not None:
        encoded = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(encoded)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_images_source(open_images_params(folder), scratch, 0.0)


def test_few_broken_narratives_are_told_and_left_out(folder, scratch, capsys):
    last = folder / narratives("train")[-1]
    last.write_text("\n{\n\n" + json.dumps({"image_id": TRAIN[3], "caption": "a cat"}))
    source = open_images_source(open_images_params(folder), scratch, 0.2)
    assert {task.name for task in source.tasks["train"]} == set(TRAIN)
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"download: narrative left out: {last}, line 2: not valid JSON")


def test_narratives_of_no_listed_image_are_refused(folder, scratch):
    for name in narratives("train"):
        (folder / name).write_text("")
    with pytest.raises(
        ValueError, match=r"00000-of-00010\.jsonl .* none of 0 narratives is of an im"
    ):
        open_images_source(open_images_params(folder), scratch, 0.0)


def test_narratives_belong_to_the_image_of_their_official_id(folder, scratch):
    params = open_images_params(folder).model_copy(update={"narratives": True})
    source = open_images_source(params, scratch, 0.0)
    ids = {task.name: task.image_id for task in source.tasks["train"]}
    assert {name: source.narratives.image_id(name) for name in ids} == ids
    assert source.narratives.example in ids
    assert [path.name for path in source.narratives.paths] == [
        f"open_images_train_v6_localized_narratives-0000{k}-of-00010.jsonl" for k in range(10)
    ]


def test_an_image_of_two_parts_is_refused(folder, scratch):
    with (folder / table("images", "validation")).open("a") as file:
        file.write(f"{TRAIN[0]},validation,http://…,0.0\n")
    with (folder / table("labels", "validation")).open("a") as file:
        file.write(f"{TRAIN[0]},verification,/m/0001,1\n")
    with pytest.raises(ValueError, match=rf"{TRAIN[0]} are listed in train and in validation"):
        open_images_source(open_images_params(folder), scratch, 0.0)


def test_labels_are_read_by_name(folder):
    assert read_labels(folder, {"Cat": 1}) == {"/m/0015": "Cat"}
    assert len(official_urls("test")) == 2 + 8 + 32 + 10


def test_stage_writes_the_internal_form(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OVIS_WORKERS", "2")
    write_download_params(
        tmp_path,
        source="open_images",
        max_missing_class_fraction=1.0,
        open_images={"folder": str(folder), "val_fraction": 0.0},
    )
    written = []
    for _ in range(2):
        main()
        files = [path for path in Path("data/download").rglob("*") if path.is_file()]
        written.append({str(path): path.read_bytes() for path in files})
    assert written[0] == written[1]
    truth = json.loads(Path("data/download/ground_truth/test.json").read_text())
    assert [len(image["verified_category_ids"]) for image in truth["images"]] == [4, 4]
    entry = next(c for c in truth["categories"] if c["name"] == "Cat")
    assert entry["ancestors"] == [IDS["Carnivore"]] and "annotated" not in truth
    train = json.loads(Path("data/download/ground_truth/train.json").read_text())
    ids = [image["id"] for image in train["images"]]
    assert ids == sorted(ids) and len(train["annotations"]) == 5
    assert np.isin([a["image_id"] for a in train["annotations"]], ids).all()
    assert not list(Path("data/download").glob(".scratch*"))
