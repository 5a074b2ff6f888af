import json
import os
import re
from pathlib import Path

import pytest

from stages.common.formats.captions import MentionFinder, read_captions
from stages.common.formats.ground_truth import is_annotated
from stages.common.formats.images import EncodedImage, read_images
from stages.download.__main__ import main
from stages.download.examples import Leaked, Listed, Skipped
from stages.download.integrity import LeakCheck, check_categories
from stages.download.params import FolderParams, MaxImagesWithoutVal
from stages.download.photographs import check_ids, hashed_id
from stages.download.sources.folder import folder_source, read_names
from tests.support.download_params import write_download_params
from tests.support.images import noise_jpeg, png_of
from tests.support.images_folder import turned

CP1252 = r"captions\.csv: byte 30 \(0xe9\) is not utf-8; save the file as UTF-8"
NO_MARK = r"captions\.csv: byte 1 is 0, as in UTF-16 without its mark; save the file as UTF-8"


def write_folder(folder: Path) -> Path:
    for name in ("a.jpg", "b/c.JPG", "b/d.png"):
        path = folder / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise_jpeg(30 + len(name), 40))
    (folder / "test").mkdir()
    (folder / "test/new.jpg").write_bytes(noise_jpeg(20, 50))
    (folder / "test/notes.md").write_text("no image")
    (folder / "names.txt").write_text("Cat: kitten,  kitty\n\npolar bear\n")
    rows = ["file_name,caption", 'a.jpg,"Two  cats, asleep"', "b/c.JPG,a polar bear", "a.jpg,"]
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")
    return folder


def make_params(folder: Path, **limits) -> FolderParams:
    limits = dict.fromkeys(("pairs", "train", "test")) | limits
    return FolderParams(path=str(folder), max_images=MaxImagesWithoutVal(**limits))


def make_all(folder: Path, split: str) -> dict:
    source = folder_source(make_params(folder), 0.0)
    return {task.file_name: source.make(task) for task in source.tasks[split]}


def test_images_captions_and_names(tmp_path):
    folder = write_folder(tmp_path)
    source = folder_source(make_params(folder), 0.0)
    assert not source.annotated and source.tasks["val"] == []
    cat, bear = source.categories
    assert (cat.id, cat.name, cat.split, cat.forms[:3]) == (
        1,
        "Cat",
        "base",
        ("cat", "cats", "kitten"),
    )
    assert MentionFinder(source.categories).classes(["Polar bears"]) == {bear.id}
    made = make_all(folder, "train")
    assert made["a.jpg"].captions == ("Two cats, asleep",) and made["a.jpg"].annotations == ()
    assert made["a.jpg"].image.encoded == (folder / "train/a.jpg").read_bytes()
    assert made["b/d.png"].reason == "has no caption"
    (new,) = make_all(folder, "test").values()
    assert (new.captions, new.image.file_name, new.image.width) == ((), "new.jpg", 50)


def test_looking_up_tells_what_making_tells(tmp_path):
    folder = write_folder(tmp_path)
    with (folder / "captions.csv").open("a") as file:
        file.write("gone.jpg,a cat\n")
    source = folder_source(make_params(folder), 0.0)
    tasks = source.tasks["train"] + source.tasks["test"]
    found = [source.look_up(task) for task in tasks]
    assert found == [getattr(made, "listed", made) for made in map(source.make, tasks)]
    assert [type(one) for one in found].count(Skipped) == 2
    assert Listed("a.jpg", ("Two cats, asleep",), ()) in found


def test_an_id_depends_on_the_name_alone(tmp_path):
    folder = write_folder(tmp_path)
    before = {
        t.file_name: t.image_id for t in folder_source(make_params(folder), 0.0).tasks["train"]
    }
    (folder / "train/0.jpg").write_bytes(noise_jpeg(9, 9))
    after = {
        t.file_name: t.image_id for t in folder_source(make_params(folder), 0.0).tasks["train"]
    }
    assert before.items() < after.items() and len(after) == 4
    assert hashed_id("train/a.jpg") != hashed_id("test/a.jpg")
    few = folder_source(make_params(folder, train=1, test=1, pairs=0), 0.0).tasks
    assert [len(few[split]) for split in ("pairs", "train", "test")] == [0, 1, 1]
    assert few["train"][0].image_id == min(after.values())


def test_ids_must_not_collide(monkeypatch):
    check_ids(["a", "b", "a"])
    monkeypatch.setattr("stages.download.photographs.ID_BITS", 1)
    with pytest.raises(ValueError, match=r"'\w' and '\w' hash to one image id; rename"):
        check_ids("abcdef")


def test_narratives_stand_in_for_captions(tmp_path):
    folder = write_folder(tmp_path)
    (folder / "captions.csv").unlink()
    fields = {"dataset_id": "mine", "annotator_id": 0, "timed_caption": [], "traces": []}
    told = [("a.jpg", "Two cats. One sleeps."), ("gone.jpg", "A dog")]
    lines = [json.dumps({**fields, "image_id": name, "caption": text}) for name, text in told]
    (folder / "narratives.jsonl").write_text("\n".join([*lines, "{"]))
    source = folder_source(make_params(folder), 0.4)
    captions = {task.file_name: task.captions for task in source.tasks["train"] if task.captions}
    assert captions == {"a.jpg": ("Two cats.", "One sleeps."), "gone.jpg": ("A dog",)}
    ids = {task.file_name: task.image_id for task in source.tasks["train"]}
    assert source.narratives.image_id("a.jpg") == ids["a.jpg"]
    image_id = source.narratives.image_id  # of a name as another system spells its accents
    assert image_id("cafe\u0301.jpg") == image_id("caf\u00e9.jpg")
    with pytest.raises(ValueError, match=r"1 of 3 lines .*narratives\.jsonl, line 3.*max_skipped_"):
        folder_source(make_params(folder), 0.3)


@pytest.mark.parametrize(
    ("image_id", "file_name"),
    [
        ("ADE_val_00000175", "b/ADE_val_00000175.jpg"),  # ADE20k
        ("1000092795", "1000092795.jpg"),  # Flickr30k
        ("6375c17e61428d75", "6375c17e61428d75.jpg"),  # Open Images
        ("a.jpg", "a.jpg"),
        ("./a.jpg", "a.jpg"),
        ("two.jpg", "two.jpg"),
        ("two", "two"),  # two.jpg or two.png
        ("b/e", "b/e"),
    ],
)
def test_an_official_id_is_the_stem_of_a_file(tmp_path, image_id, file_name):
    folder = write_folder(tmp_path)
    (folder / "captions.csv").unlink()
    for name in ("b/ADE_val_00000175.jpg", "1000092795.jpg", "6375c17e61428d75.jpg", "two.jpg"):
        (folder / "train" / name).touch()
    (folder / "train/two.png").touch()
    said = {"dataset_id": "", "annotator_id": 0, "timed_caption": [], "traces": []}
    line = json.dumps({**said, "image_id": image_id, "caption": "A cat."})
    (folder / "narratives.jsonl").write_text(line)
    source = folder_source(make_params(folder), 0.0)
    assert {task.file_name for task in source.tasks["train"] if task.captions} == {file_name}
    assert source.narratives.image_id(image_id) == hashed_id(f"train/{file_name}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n", r"^\S+/narratives\.jsonl: has no narrative; download\.folder\.path of params\.yaml"),
        (
            "{\n[]\n",
            r"^2 of 2 lines .*/narratives\.jsonl, line 1: not valid JSON.*line 2: expected",
        ),
    ],
)
def test_narratives_without_any_are_named_before_their_images(tmp_path, text, message):
    folder = write_folder(tmp_path)
    (folder / "captions.csv").unlink()
    (folder / "narratives.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        folder_source(make_params(folder), 0.5)


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ("file_name,caption\na.jpg,a cat, a dog\n", ["a cat, a dog"]),
        ('file_name,caption\na.jpg,"a ""big"" cat, asleep"\n', ['a "big" cat, asleep']),
        ("file_name,caption\na.jpg,see b.png, a cat\n", ["see b.png, a cat"]),
        ('file_name,caption\na.jpg,a 5" plate\na.jpg,a cat\n', ['a 5" plate', "a cat"]),
        ('file_name, caption\na.jpg,"a cat\non a bed"\r\n\r\n', ["a cat on a bed"]),
        ("id,caption,file_name\n7,a cat,a.jpg\n", ["a cat"]),
        ("\ufefffile_name,caption\na.jpg,un cafe\u0301\n", ["un caf\u00e9"]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_caption_is_the_whole_text_of_its_row(tmp_path, text, captions, encoding):
    folder = write_folder(tmp_path)
    (folder / "captions.csv").write_bytes(text.removeprefix("\ufeff").encode(encoding))
    if encoding == "utf-8":
        (folder / "captions.csv").write_text(text, encoding="utf-8", newline="")
    assert list(make_all(folder, "train")["a.jpg"].captions) == captions


def test_names_may_have_comments_and_accents(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("# my classes\n\ncat: kitty  # at home\ncafe\u0301\n   # that is all\n")
    categories = read_names(path)
    assert [category.name for category in categories] == ["cat", "caf\u00e9"]
    assert categories[0].forms == ("cat", "cats", "kitty", "kitties")
    assert MentionFinder(categories).classes(["a caf\u00e9"]) == {2}


def test_a_plural_that_is_another_class_is_that_class(tmp_path):
    path = tmp_path / "names.txt"
    for text in ("glass\nglasses\nbox\n", "glasses\nglass\nbox\n"):
        path.write_text(text)
        categories = {category.name: category for category in read_names(path)}
        assert categories["glass"].forms == ("glass",) and "boxes" in categories["box"].forms
        found = MentionFinder(categories.values()).classes(["glasses"])
        assert found == {categories["glasses"].id}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("a.JPG", "a.jpg"),
        ("a", "a.jpg"),
        ("a.jpg#0", "a.jpg"),
        ("images/train/a.jpg", "a.jpg"),
        ("b\\c.JPG", "b/c.JPG"),
        ("C.jpeg ", "b/c.JPG"),
    ],
)
def test_a_file_name_of_another_form_is_corrected(tmp_path, name, meant):
    folder = write_folder(tmp_path)
    (folder / "captions.csv").unlink()
    (folder / "captions.json").write_text(json.dumps({name: "a cat", "gone.jpg": "a cat"}))
    message = rf"captions\.json: '{re.escape(name)}' is no file in /\S+/train; write '{meant}'"
    with pytest.raises(ValueError, match=message):
        folder_source(make_params(folder), 0.0)
    captions = {name: "a cat", meant: "a cat"}  # the images of a larger set are not here
    (folder / "captions.json").write_text(json.dumps(captions))
    assert set(make_all(folder, "train")) == {"a.jpg", "b/c.JPG", "b/d.png", name}


def test_captions_as_json(tmp_path):
    folder = write_folder(tmp_path)
    (folder / "captions.csv").unlink()
    gone = ("gone.jpg", f"{'long' * 64}.jpg")
    captions = {"./a.jpg": ["x", "y "], **dict.fromkeys(gone, "z")}
    (folder / "captions.json").write_text(json.dumps(captions))
    made = make_all(folder, "train")
    assert made["a.jpg"].captions == ("x", "y")
    for name in gone:
        path = str(folder / "train" / name)
        assert made[name] == Skipped(hashed_id(f"train/{name}"), path, "no such file")
    (folder / "captions.json").write_text('["a.jpg"]')
    with pytest.raises(ValueError, match=r"captions\.json: must be \{file_name: caption or list"):
        folder_source(make_params(folder), 0.0)
    (folder / "captions.json").write_text('{"a.jpg": ["x", null]}')
    with pytest.raises(ValueError, match=r"or list of captions\}, but 'a\.jpg' has None"):
        folder_source(make_params(folder), 0.0)


def test_images_are_turned_upright(tmp_path):
    folder = write_folder(tmp_path)
    stored = noise_jpeg(30, 40)
    (folder / "test/new.jpg").write_bytes(turned(stored))
    image = make_all(folder, "test")["new.jpg"].image
    assert (image.height, image.width) == image.decode().shape[:2] == (40, 30)
    (folder / "test/new.jpg").write_bytes(turned(stored, orientation=1))
    assert make_all(folder, "test")["new.jpg"].image.height == 30


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "captions.csv",
            None,
            r"captions\.csv: not found, nor captions\.json, nor narr.*; there are names\.txt, te",
        ),
        ("captions.csv", "file_name,caption\n", r"captions\.csv: has no caption"),
        (
            "captions.csv",
            "file_name,caption,caption\n",
            r"captions\.csv: has the column caption twi",
        ),
        ("captions.csv", "image,text\n", r"captions\.csv: has no column caption and file_name"),
        ("captions.csv", "file_name,caption\na.jpg\n", r"captions\.csv, row 2: has no caption"),
        (
            "captions.csv",
            "caption,file_name\na cat, a dog,a.jpg\n",
            r"captions\.csv, row 2: has too many columns; put a caption's commas within quotes",
        ),
        (
            "captions.csv",
            'file_name,caption\n\na.jpg,"a cat\nb/c.JPG,a dog\nd.png,the sign "\n',
            r"captions\.csv, row 3: a quote opens that does not close before the row of 'b/c\.JPG'",
        ),
        (
            "captions.csv",
            'file_name,caption\na.jpg,a cat\nb/c.JPG,"a dog\n',
            r"captions\.csv, row 3: unexpected end of data; put the whole caption within quotes",
        ),
        (
            "captions.csv",
            'file_name,caption\na.jpg,"a cat" and a dog\n',
            r"captions\.csv, row 2: ',' expected after '\"'; put the whole caption within quotes",
        ),
        ("captions.csv", "file_name,caption\na.jpg,un caf\xe9\n".encode("cp1252"), CP1252),
        ("captions.csv", "file_name,caption\na.jpg,a cat\n".encode("utf-16-le"), NO_MARK),
        ("captions.csv", b"\xff\xfef\x00", r"captions\.csv: has no column caption and file_name"),
        ("captions.csv", b"\xff\xfef", r"captions\.csv: byte 2 \(0x66\) is not utf-16"),
        ("names.txt", "caf\xe9\n".encode("cp1252"), r"names\.txt: byte 3 \(0xe9\) is not utf-8"),
        ("names.txt", "0: cat\n1: dog\n", r"line 1: '0' is not a name; .* the class, 'cat'"),
        ("names.txt", "cat\n- dog\n", r"names\.txt, line 2: '- dog' begins with '-'; .*, 'dog'"),
        ("names.txt", "1. cat\n", r"names\.txt, line 1: '1\. cat' begins with '1\.'; .*, 'cat'"),
        ("names.txt", "cat, dog\n", r"names\.txt, line 1: 'cat, dog' has a comma; write one class"),
        ("captions.json", "{}", r"has captions\.csv and captions\.json; remove one"),
        (
            "captions.csv",
            "file_name,caption\n,a cat\n",
            r"captions\.csv: a caption has no file name",
        ),
        (
            "captions.csv",
            "file_name,caption\ntrain/a.jpg,a cat\n",
            r"captions\.csv: 'train/a\.jpg' must be relative to /\S+/train; write 'a\.jpg'",
        ),
        (
            "captions.csv",
            "file_name,caption\n../test/new.jpg,a cat\n",
            r"captions\.csv: '\.\./test/new\.jpg' must be a file inside /\S+/train, relative to it",
        ),
        ("captions.csv", "file_name,caption\n/a.jpg,a cat\n", r"'/a\.jpg' must be a file inside /"),
        ("names.txt", None, r"names\.txt: not found; download\.folder\.path of params\.yaml"),
        ("names.txt", "\n\n", r"names\.txt: names no class; write one per line"),
        ("names.txt", "cat\nkitty: Cat\n", r"line 2: 'cat' already stands for 'cat' of line 1"),
        ("names.txt", "hot dog\n\nhot-dog\n", r"line 3: 'hot-dog' .* for 'hot dog' of line 1;"),
        ("names.txt", "cat\ncat: kitty\n", r"line 2: 'cat' already stands for 'cat' of line 1"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path, name, content, message):
    folder = write_folder(tmp_path)
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        encoded = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(encoded)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        folder_source(make_params(folder), 0.0)


def test_a_missing_folder_is_named(tmp_path):
    folder = write_folder(tmp_path)
    (folder / "test").rename(folder / "tests")
    with pytest.raises(FileNotFoundError, match=r"test: no such folder; download\.folder\.path"):
        folder_source(make_params(folder), 0.0)
    (folder / "test").mkdir()
    with pytest.raises(FileNotFoundError, match=r"/test: is empty; put images there"):
        folder_source(make_params(folder), 0.0)


def test_classes_belong_to_one_part(tmp_path):
    categories = read_names(write_folder(tmp_path) / "names.txt")
    check_categories(categories)
    cat, bear = categories
    twice = type(cat)(3, "Cat", "novel", ("puss",))
    with pytest.raises(ValueError, match=r"class name 'Cat' is given 2 times \(in base, novel\)"):
        check_categories([cat, bear, twice])
    with pytest.raises(ValueError, match="there is no base class"):
        check_categories([twice])


def test_training_images_that_are_held_out_are_found():
    leaks = LeakCheck()
    found = [
        leaks.check(split, EncodedImage(number, name, 1, 1, content))
        for number, (split, name, content) in enumerate(
            (
                ("val", "b.jpg", b"two"),
                ("test", "copy of a.jpg", b"one"),
                ("test", "b again.jpg", b"two"),
                ("pairs", "c.jpg", b"three"),
                ("train", "c.jpg", b"three"),
                ("train", "a.jpg", b"one"),
                ("train", "b.jpg", b"two"),
            )
        )
    ]
    assert found == [None] * 5 + [
        Leaked(5, "a.jpg", "copy of a.jpg of test"),
        Leaked(6, "b.jpg", "b.jpg of val"),
    ]


def write_params(
    folder: Path, source: Path, leaked: float = 0.0, missing: float = 0.0, skipped: float = 0.5
) -> None:
    write_download_params(
        folder,
        source="folder",
        max_skipped_fraction=skipped,
        max_leaked_fraction=leaked,
        max_missing_class_fraction=missing,
        folder={"path": str(source)},
    )


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Give a folder of images, and go where params.yaml will be."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OVIS_WORKERS", "1")
    return write_folder(tmp_path / "images")


def test_stage_writes_the_internal_form(tmp_path, source):
    write_params(tmp_path, source)
    main()
    out = tmp_path / "data/download"
    for split in ("train", "val", "test"):
        assert not is_annotated(out / f"ground_truth/{split}.json")
    assert json.loads((out / "annotations/train/0.json").read_text()) == []
    truth = json.loads((out / "ground_truth/test.json").read_text())
    assert [image["file_name"] for image in truth["images"]] == ["new.jpg"]
    report = json.loads((out / "report.json").read_text())
    assert "classes_without_object_in_test" not in report
    assert "objects" not in report["splits"]["test"]
    captions = read_captions(*out.glob("captions/train/*.json"))
    shards = [out / f"images/train/{shard}.parquet" for shard in (0, 1)]
    assert {p.image_id for p in read_images(*shards)} == set(captions) and len(captions) == 2


def read_report() -> dict:
    return json.loads(Path("data/download/report.json").read_text())


def test_a_training_image_that_is_held_out_is_dropped_and_reported(tmp_path, source, capsys):
    (source / "test/old.jpg").write_bytes((source / "train/a.jpg").read_bytes())
    write_params(tmp_path, source, leaked=0.5, missing=1.0)
    main()
    out = tmp_path / "data/download"
    assert set(read_captions(*out.glob("captions/*/*.json"), out / "captions/pairs.json")) == {
        hashed_id("train/b/c.JPG")
    }
    names = [image.file_name for image in read_images(*out.glob("images/train/*.parquet"))]
    assert names == ["b/c.JPG"]
    leaked = {
        "image_id": hashed_id("train/a.jpg"),
        "file_name": "a.jpg",
        "same_as": "old.jpg of test",
    }
    splits = read_report()["splits"]
    assert splits["train"]["leaked"] == splits["pairs"]["leaked"] == [leaked]
    assert (splits["train"]["images"], splits["test"]["images"]) == (1, 2)
    assert splits["train"]["mentioned_in_images"] == {"Cat": 0, "polar bear": 1}
    assert "1 images were left out because they equal held-out images" in capsys.readouterr().err


def test_too_many_held_out_training_images_are_refused(tmp_path, source):
    (source / "test/old.jpg").write_bytes((source / "train/a.jpg").read_bytes())
    write_params(tmp_path, source, leaked=0.49, missing=1.0)
    with pytest.raises(ValueError, match=r"split train: 1 of 2 .*: a\.jpg is old\.jpg of test\. "):
        main()


def test_what_tables_tell_is_checked_before_an_image_is_read(tmp_path, source, monkeypatch):
    monkeypatch.setattr("stages.download.sources.folder.read_photograph", None)
    with (source / "names.txt").open("a") as file:
        file.write("dragon\n")
    write_params(tmp_path, source)
    with pytest.raises(ValueError, match=r"classes without caption in train: 1 of 3 \(dragon\)"):
        main()
    assert not (tmp_path / "data/download/images").exists()
    assert read_report()["classes_without_caption_in_train"] == ["dragon"]
    assert [skipped["reason"] for skipped in read_report()["splits"]["train"]["skipped"]] == [
        "has no caption"
    ]


def test_files_of_other_formats_are_counted_and_named(tmp_path, source, capsys):
    for name in ("train/.DS_Store", "train/e.heic", "train/b/f.HEIC", "train/g.mov"):
        (source / name).write_text("no image")
    for number in range(12):
        (source / f"test/{number:02}.avif").write_text("no image")
    write_params(tmp_path, source)
    main()
    ignored = read_report()["ignored_files"]
    assert ignored["train"] == {"number": 3, "first": ["b/f.HEIC", "e.heic", "g.mov"]}
    assert ignored["test"]["number"] == 13 and len(ignored["test"]["first"]) == 10
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "ignored" in line] == [
        "data/download/report.json: train/: 3 files are hidden or no images and were"
        " ignored: b/f.HEIC, e.heic, g.mov",
        "data/download/report.json: test/: 13 files are hidden or no images and were"
        " ignored: 00.avif, 01.avif, 02.avif, …",
    ]


def test_hidden_images_and_broken_links_are_ignored_and_named(tmp_path, source):
    """Jupyter, a NAS and macOS keep copies and thumbnails beside the images."""
    (source / "test/notes.md").unlink()
    hidden = (".ipynb_checkpoints/new.jpg", "@eaDir/new.jpg", "__MACOSX/new.jpg", ".new.jpg")
    for name in (*hidden, ".git/config"):
        (source / "test" / name).parent.mkdir(exist_ok=True)
        (source / "test" / name).write_bytes(noise_jpeg(20, 50))
    (source / "test/gone.jpg").symlink_to("/nowhere/gone.jpg")
    write_params(tmp_path, source)
    main()
    others = sorted((*hidden, "gone.jpg (broken link)"))
    assert read_report()["ignored_files"] == {"test": {"number": 5, "first": others}}
    shown = json.loads(Path("data/download/ground_truth/test.json").read_text())["images"]
    assert [image["file_name"] for image in shown] == ["new.jpg"]


def test_a_folder_of_one_format_says_nothing_of_others(tmp_path, source):
    (source / "test/notes.md").unlink()
    write_params(tmp_path, source)
    main()
    assert "ignored_files" not in read_report()


def test_there_must_be_ground_truth_to_ask(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train\.json: no such file; `dvc repro download`"):
        is_annotated(tmp_path / "train.json")
    (tmp_path / "train.json").write_text('{"annotations": [], "categories": [], "images": []}')
    assert is_annotated(tmp_path / "train.json")


def test_files_that_cannot_be_read_are_named_and_counted(tmp_path, source):
    """/proc/self/mem stands for a file without read permission, which root can read."""
    (source / "train/a.jpg").unlink()
    (source / "train/a.jpg").symlink_to("/proc/self/mem")
    (source / "train/._a.jpg").write_bytes(b"of macOS")
    (source / "test/thin.png").write_bytes(noise_jpeg(8, 3000))
    (source / "test/huge.png").write_bytes(png_of(40_000, 40_000))
    (source / "train/flat.jpg").write_bytes(noise_jpeg(8, 3000))
    with (source / "captions.csv").open("a", encoding="utf-8") as captions:
        captions.write("flat.jpg,a cat\n")
    (source / os.fsdecode(b"test/caf\xe9.jpg")).write_bytes(noise_jpeg(20, 20))
    write_params(tmp_path, source, missing=1.0, skipped=0.8)
    main()
    report = read_report()
    skipped = {
        Path(one["file_name"]).name: one["reason"]
        for split in ("train", "test")
        for one in report["splits"][split]["skipped"]
    }
    assert skipped == {
        "a.jpg": "cannot be read: Input/output error",
        "d.png": "has no caption",
        "flat.jpg": "is 3000 × 8 pixels, thinner than 1 : 25; crop it",
        "thin.png": "is 3000 × 8 pixels, thinner than 1 : 25; crop it",
        "huge.png": "OpenCV refuses it: pixels <= CV_IO_MAX_IMAGE_PIXELS",
    }
    assert report["ignored_files"]["train"]["first"] == ["._a.jpg"]
    shown = json.loads(Path("data/download/ground_truth/test.json").read_text())["images"]
    assert {image["file_name"] for image in shown} == {"caf%E9.jpg", "new.jpg"}
