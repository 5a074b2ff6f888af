"""download: the fetch command on small copies of COCO and Open Images, from server and folder."""

import hashlib
import io
import os
import shutil
import signal
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from threading import Barrier, Semaphore
from types import SimpleNamespace

import pytest

from fetch import __main__ as fetch
from fetch import coco_files
from fetch.archives import check_archive, unpack
from fetch.fetcher import LARGE_AT_ONCE, Fetcher, read_mirror
from fetch.transfer import FetchError, Patience, Remote
from stages.download.params import MaxImages
from stages.download.sources.open_images import files as open_images_files
from tests.support.coco_folder import coco_params, write_coco
from tests.support.http_server import serve
from tests.support.mounts import small_files
from tests.support.open_images_folder import TEST, TRAIN, open_images_params, write_open_images
from tests.support.toy import REPOSITORY

QUICK = Patience(attempts=2, first_wait=0.0, longest_wait=0.0, timeout=5.0)


def zipped(members: dict[str, bytes], mode: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def published(key: str, content: bytes, unpacked: int = 1000) -> coco_files.Archive:
    return coco_files.Archive(key, len(content), hashlib.md5(content).hexdigest(), unpacked)


@pytest.fixture
def server():
    with serve() as running:
        yield running


@pytest.fixture
def coco(server, tmp_path, monkeypatch):
    """Give a small COCO on the server, and the params of a folder for it."""
    original = write_coco(tmp_path / "original")

    def members(pattern: str) -> dict[str, bytes]:
        paths = sorted(original.glob(pattern))
        return {path.relative_to(original).as_posix(): path.read_bytes() for path in paths}

    server.files["/annotations/annotations_trainval2017.zip"] = zipped(
        members("annotations/*") | {"annotations/person_keypoints_val2017.json": b"{}"}
    )
    for part in coco_files.PARTS:
        server.files[f"/zips/{part}.zip"] = zipped(members(f"{part}/*"))
        for name, content in members(f"{part}/*").items():
            server.files[f"/{name}"] = content
    for name, content in server.files.items():
        if name.startswith("/zips"):
            archive = published(name[1:], content)
            monkeypatch.setitem(coco_files.IMAGE_ARCHIVES, Path(name).stem, archive)
        elif name.endswith("zip"):
            monkeypatch.setattr(coco_files, "ANNOTATION_ARCHIVE", published(name[1:], content))
    monkeypatch.setattr(coco_files, "SERVER", server.url)
    return coco_params(tmp_path / "coco")


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".fetch.lock"
    }


def test_coco_comes_whole_and_only_what_is_needed(server, coco, tmp_path):
    fetch.fetch_coco(coco, Fetcher(None, 4, QUICK))
    assert tree(Path(coco.folder)) == tree(tmp_path / "original")
    asked = len(server.requests)
    fetch.fetch_coco(coco, Fetcher(None, 4, QUICK))
    assert len(server.requests) == asked  # everything is there


def test_a_broken_off_fetch_goes_on(server, coco, tmp_path):
    server.plans["/zips/train2017.zip"] = [("drop", 700), *[("status", 500, {})] * 2]
    with pytest.raises(FetchError, match=r"zips/train2017\.zip: given up after 2 attempts"):
        fetch.fetch_coco(coco, Fetcher(None, 4, QUICK))
    shutil.rmtree(Path(coco.folder) / "val2017", ignore_errors=True)
    fetch.fetch_coco(coco, Fetcher(None, 4, QUICK))
    assert server.gets("/zips/train2017.zip")[-1] == "bytes=700-"
    assert tree(Path(coco.folder)) == tree(tmp_path / "original")


def test_few_images_come_one_by_one(server, coco, monkeypatch):
    monkeypatch.setattr(fetch, "COCO_IMAGE", 1)
    limits = MaxImages(pairs=0, train=1, val=0, test=1)
    few = coco.model_copy(update={"max_images": limits})
    fetch.fetch_coco(few, Fetcher(None, 4, QUICK))
    images = {name for name in tree(Path(coco.folder)) if name.endswith("jpg")}
    assert images == {"train2017/000000000001.jpg", "val2017/000000000009.jpg"}
    assert server.gets("/zips/train2017.zip") == []


def test_images_that_cannot_be_had_are_named_and_the_others_come(server, coco, monkeypatch):
    monkeypatch.setattr(fetch, "COCO_IMAGE", 1)
    del server.files["/train2017/000000000002.jpg"]
    with pytest.raises(FetchError, match=r"0002\.jpg: HTTP 404.*\n2 of 3 files are there"):
        fetch.fetch_coco(coco, Fetcher(None, 4, QUICK))
    assert (Path(coco.folder) / "train2017/000000000003.jpg").is_file()


def test_mirrors_are_folders_or_addresses(server, coco, tmp_path, monkeypatch):
    monkeypatch.setattr(coco_files, "SERVER", "http://nowhere.invalid")
    fetch.fetch_coco(coco, Fetcher(f"{server.url}/", 2, QUICK))
    assert tree(Path(coco.folder)) == tree(tmp_path / "original")
    for flat in (True, False):
        mirror, other = tmp_path / f"mirror {flat}", tmp_path / f"other {flat}"
        for name, content in server.files.items():
            place = mirror / (Path(name).name if flat else name[1:])
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        params = coco.model_copy(update={"folder": str(other)})
        fetch.fetch_coco(params, Fetcher(str(mirror), 2, QUICK))
        assert tree(other) == tree(tmp_path / "original")


def test_an_archive_of_something_else_is_refused(server, coco, monkeypatch):
    content = zipped({"train2017/000000000001.jpg": b"x"})
    server.files["/zips/train2017.zip"] = content
    archive = published("zips/train2017.zip", content)
    monkeypatch.setitem(coco_files.IMAGE_ARCHIVES, "train2017", archive)
    with pytest.raises(FetchError, match=r"lacks 2 files, such as train2017/0+2\.jpg; it is not"):
        fetch.fetch_coco(coco, Fetcher(None, 2, QUICK))


def test_no_room_is_said_before_anything_is_fetched(server, coco, monkeypatch):
    usage = SimpleNamespace(free=10)
    monkeypatch.setattr("fetch.transfer.shutil.disk_usage", lambda path: usage)
    with pytest.raises(FetchError, match=r"coco: .* are needed and 10 bytes are free; make room"):
        fetch.fetch_coco(coco, Fetcher(None, 2, QUICK))
    assert not [command for command, *_ in server.requests if command == "GET"]


def serve_open_images(server, folder: Path) -> dict[str, bytes]:
    """Have a small Open Images below /mirror; return its files."""
    files = tree(write_open_images(folder))
    for name, content in files.items():
        server.files[f"/mirror/{name}" if "/" in name else name] = content
    for name, url in open_images_files.official_urls("validation").items():
        server.files[f"/mirror/{url.split('/', 3)[3]}"] = server.files.pop(name)
    return files


def test_open_images_comes_with_the_images_it_calls_for(server, tmp_path):
    fetched = serve_open_images(server, tmp_path / "original")
    params = open_images_params(tmp_path / "open-images")
    fetch.fetch_open_images(params, 0.0, Fetcher(f"{server.url}/mirror", 4, QUICK))
    for name in (f"train/{TRAIN[3]}.jpg", f"validation/{TEST[2]}.jpg"):
        del fetched[name]  # no split has them
    assert tree(tmp_path / "open-images") == fetched


def test_broken_archives_of_outlines_are_found_at_once(tmp_path):
    original = write_open_images(tmp_path / "mirror")
    (original / "train-masks-7.zip").write_bytes(b"<html>busy</html>")
    params = open_images_params(tmp_path / "open-images")
    with pytest.raises(FetchError, match=r"train-masks-7\.zip: File is not a zip file; remove it"):
        fetch.fetch_open_images(params, 0.0, Fetcher(str(original), 4, QUICK))


@pytest.mark.parametrize(
    ("name", "mode", "what"),
    [
        ("../outside.jpg", 0, "a path out of the folder"),
        ("train2017/../../outside.jpg", 0, "a path out of the folder"),
        ("/etc/outside.jpg", 0, "an absolute path"),
        ("C:/outside.jpg", 0, "an absolute path"),
        ("..\\outside.jpg", 0, "an absolute path"),
        ("train2017/link.jpg", stat.S_IFLNK | 0o777, "a link or device"),
        ("train2017/pipe.jpg", stat.S_IFIFO | 0o666, "a link or device"),
    ],
)
def test_archives_cannot_write_elsewhere(tmp_path, name, mode, what):
    archive, folder = tmp_path / "archive.zip", tmp_path / "folder"
    archive.write_bytes(zipped({"good.jpg": b"good", name: b"/etc/passwd"}, mode=mode))
    with pytest.raises(FetchError, match=rf"archive\.zip: its member '.*' is {what}: nothing was"):
        unpack(archive, folder)
    assert not folder.exists() and not (tmp_path / "outside.jpg").exists()


def test_bombs_and_broken_archives_are_refused(tmp_path):
    archive = tmp_path / "archive.zip"
    archive.write_bytes(zipped({"zeros": bytes(10_000_000)}))
    with pytest.raises(FetchError, match="unbelievably compressed"):
        unpack(archive, tmp_path / "folder")
    whole = bytearray(zipped({"a": bytes(range(100)), "b": b"content of b"}))
    archive.write_bytes(whole[:-5])
    for call in (check_archive, lambda path: unpack(path, tmp_path / "folder")):
        with pytest.raises(FetchError, match=r"not a zip file; remove it and fetch it again"):
            call(archive)
    whole[whole.index(b"a") + 40] ^= 0xFF
    archive.write_bytes(whole)
    with pytest.raises(FetchError, match=r"remove it and fetch it again"):
        unpack(archive, tmp_path / "folder")
    assert not (tmp_path / "folder/a").exists()


def test_unpacking_goes_on(tmp_path):
    archive, folder = tmp_path / "archive.zip", tmp_path / "folder"
    archive.write_bytes(zipped({"part/a": b"aa", "part/b": b"bb", "other": b"cc"}))
    (folder / "part").mkdir(parents=True)
    (folder / "part/a").write_bytes(b"there")
    (folder / "part/.b.partial").write_bytes(b"b")
    unpack(archive, folder, lambda name: name.startswith("part/"))
    assert tree(folder) == {"part/a": b"there", "part/b": b"bb"}


def test_a_disk_that_is_full_while_unpacking_names_the_file(tmp_path):
    archive, folder = tmp_path / "archive.zip", tmp_path / "folder"
    archive.write_bytes(zipped({"part/a": b"a" * 200}))
    told = r"cannot write .*/part/\.a\.partial: File too large"
    with small_files(100), pytest.raises(OSError, match=told):
        unpack(archive, folder)
    unpack(archive, folder)
    assert tree(folder) == {"part/a": b"a" * 200}


def test_two_commands_do_not_write_the_same_files(tmp_path):
    with (
        fetch.alone(tmp_path),
        pytest.raises(FetchError, match="another command is fetching there"),
        fetch.alone(tmp_path),
    ):
        pass


@pytest.mark.parametrize(("kind", "most"), [("images", 20), ("files", LARGE_AT_ONCE)])
def test_so_many_come_at_once(tmp_path, monkeypatch, kind, most):
    barrier, running, seen = Barrier(most), Semaphore(most), []

    def fetch_together(remote, *_):
        seen.append(running.acquire(blocking=False))
        barrier.wait(timeout=5.0)  # until so many have come
        running.release()

    monkeypatch.setattr("fetch.fetcher.fetch", fetch_together)
    remotes = [
        Remote("http://nowhere.invalid/a", tmp_path / str(k), size=1) for k in range(2 * most)
    ]
    fetcher = Fetcher(None, 20, QUICK)
    if kind == "images":
        fetcher.fetch_images(remotes, tmp_path, 1)
    else:
        fetcher.fetch_files(remotes, tmp_path)
    assert len(seen) == 2 * most and all(seen)


def test_a_server_that_is_away_is_given_up_before_all_images_were_tried(server, tmp_path):
    remotes = [Remote(f"{server.url}/{k}", tmp_path / str(k)) for k in range(40)]
    told = r"HTTP 404.*\n4 files in a row failed .* run the same again"
    with pytest.raises(FetchError, match=told):
        Fetcher(None, 2, QUICK).fetch_images(remotes, tmp_path, 1)
    assert len(server.requests) < 12


STOPPED = """
import os, sys, time
from fetch import __main__ as fetch, fetcher
from fetch.fetcher import Fetcher
from fetch.transfer import Remote
from pathlib import Path
def run(params, fetcher):
    fetcher.fetch_images([Remote("http://nowhere.invalid/a", Path("a"))] * 9, Path(), 1)
def hang(*_):
    print("fetches", flush=True)
    time.sleep(60)
fetch.run, fetcher.fetch = run, hang
fetch.main()
"""


def test_ctrl_c_stops_at_once_and_says_how_to_go_on(tmp_path):
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    command = [sys.executable, "-c", STOPPED]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes) as process:
        assert process.stdout.readline() == "fetches\n"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=20)
    assert (process.returncode, told) == (130, "stopped; run the same again to go on from here\n")


def test_progress_says_how_long_it_takes(server, tmp_path, capsys):
    server.files["/a"], server.files["/b"] = bytes(4000), bytes(6000)
    remotes = [Remote(f"{server.url}/{name}", tmp_path / name) for name in "ab"]
    Fetcher(None, 2, QUICK).fetch_files(remotes, tmp_path)
    assert "10.0 KB of 10.0 KB (" in capsys.readouterr().err


def test_command_line(server, coco, tmp_path, monkeypatch, capsys):
    (tmp_path / "params.yaml").write_text((Path(__file__).parents[2] / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fetch", "--workers", "3"])
    text = (tmp_path / "params.yaml").read_text().replace("source: scenes", "source: coco")
    (tmp_path / "params.yaml").write_text(text.replace("folder: ../coco", "folder: coco"))
    made = []
    monkeypatch.setattr(fetch, "Fetcher", lambda *facts: made.append(facts) or Fetcher(*facts))
    fetch.main()
    assert made == [(None, 3, Patience())]
    assert tree(tmp_path / "coco") == tree(tmp_path / "original")
    assert "everything that download needs is there" in capsys.readouterr().out


def test_mirrors_may_have_any_name(server, tmp_path, monkeypatch):
    server.files["/eine%20Kopie/%C3%BC/a/b.jpg"] = b"b"
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "eine Kopie ü"
    folder.mkdir()
    (folder / "b.jpg").write_bytes(b"b")
    for number, text in enumerate((f"{server.url}/eine Kopie/ü", "~/eine Kopie ü")):
        remote = Remote("http://nowhere.invalid/a/b.jpg", tmp_path / f"{number}.jpg")
        Fetcher(read_mirror(text), 1, QUICK).fetch_images([remote], tmp_path, 1)
        assert remote.path.read_bytes() == b"b"
    assert read_mirror("https://a.b:8/c%20d") == "https://a.b:8/c%20d"


@pytest.mark.parametrize(
    ("change", "words", "told"),
    [
        (("", ""), ["--mirror", "nowhere"], "--mirror nowhere: no such fol"),
        (("", ""), ["--mirror", "s3://b"], "--mirror s3://b: expected a folder, or http:// or"),
        (("", ""), ["--mirror", "http://"], "--mirror http://: expected a folder"),
        (("", ""), ["--mirror", "http://a:b/"], "--mirror http://a:b/: expected a folder"),
        (("", ""), [], "download.source is scenes, which needs nothing"),
        (("source: scenes", "source: web"), [], "params.yaml: download.source: "),
        (("download:", "upload:"), [], "params.yaml: section 'download' is missing"),
        (None, [], "params.yaml: no such file"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, monkeypatch, capsys, change, words, told):
    if change:
        text = (REPOSITORY / "params.yaml").read_text().replace(*change)
        (tmp_path / "params.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fetch", *words])
    with pytest.raises(SystemExit) as ended:
        fetch.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and told in line


# The command, but for its patience of half a minute.
COMMAND = """
import sys
from fetch import __main__ as fetch
from fetch.transfer import Patience
fetch.Patience = lambda: Patience(attempts=2, first_wait=0.0, longest_wait=0.0, timeout=5.0)
fetch.main()
"""


def call_command(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess:
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment = {**kept, "PYTHONPATH": str(REPOSITORY), **more}
    command = [sys.executable, "-c", COMMAND, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_dead_proxy_is_named_and_what_came_stays(server, tmp_path):
    text = (REPOSITORY / "params.yaml").read_text().replace("source: scenes", "source: open_images")
    (tmp_path / "params.yaml").write_text(text.replace("folder: ../open-images", "folder: here"))
    serve_open_images(server, tmp_path / "original")
    url = open_images_files.official_urls("validation")[open_images_files.CLASSES]
    classes = f"/mirror/{url.split('/', 3)[3]}"
    server.plans[classes] = [("drop", 70), *[("status", 500, {})] * 2]
    mirror = f"{server.url}/mirror"
    assert call_command(tmp_path, "--mirror", mirror).returncode == 1
    for scheme, address in {"http": mirror, "https": "https://example.invalid/mirror"}.items():
        proxy = {f"{scheme}_proxy": "http://someone:secret@127.0.0.1:9"}
        dead = call_command(tmp_path, "--mirror", address, **proxy)
        assert dead.returncode == 1
        (line,) = [line for line in dead.stderr.splitlines() if "given up" in line]
        assert "no connection through the proxy 127.0.0.1:9: [Errno 111] Connection refu" in line
        assert "run the command again" in line
        assert "secret" not in dead.stderr and "Traceback" not in dead.stderr
    again = call_command(tmp_path, "--mirror", mirror)
    assert again.returncode == 0, again.stderr
    assert server.gets(classes)[-1] == "bytes=70-"
