"""download: files over HTTP from a server that drops, refuses, lies and truncates."""

import base64
import email.utils
import hashlib
import time
from types import SimpleNamespace

import pytest

from fetch import transfer
from fetch.transfer import (
    FetchError,
    Patience,
    Remote,
    check_free_space,
    fetch,
    in_words,
    remote_size,
)
from tests.support.http_server import serve
from tests.support.mounts import small_files

CONTENT = bytes(range(256)) * 40
MD5 = hashlib.md5(CONTENT).hexdigest()
QUICK = Patience(attempts=3, first_wait=0.0, longest_wait=0.0, timeout=5.0)


@pytest.fixture(scope="module")
def server():
    with serve() as running:
        yield running


@pytest.fixture
def remote(server, tmp_path, request):
    """Give a file of its own on the server."""
    path = f"/{request.node.name}/file.bin"
    server.files[path] = CONTENT
    return Remote(f"{server.url}{path}", tmp_path / "folder/file.bin")


def plan(server, remote, *faults):
    path = remote.url.removeprefix(server.url)
    server.plans[path] = list(faults)
    return path


def with_md5(remote, md5=MD5, size=None):
    return Remote(remote.url, remote.path, size, md5)


def is_whole(remote):
    """Whether the file is there, and nothing beside it."""
    return [p.name for p in remote.path.parent.iterdir()] == ["file.bin"] and (
        remote.path.read_bytes() == CONTENT
    )


def test_whole_file_is_fetched_once(server, remote):
    path, steps = plan(server, remote), []
    fetch(with_md5(remote, size=len(CONTENT)), QUICK, steps.append)
    assert is_whole(remote) and sum(steps) == len(CONTENT)
    fetch(remote, QUICK)
    assert server.gets(path) == [None]


def test_dropped_connections_are_resumed(server, remote):
    path, steps = plan(server, remote, ("drop", 1000), ("drop", 2000)), []
    fetch(with_md5(remote), QUICK, steps.append)
    assert is_whole(remote) and sum(steps) == len(CONTENT)
    assert server.gets(path) == [None, "bytes=1000-", "bytes=3000-"]


def test_any_number_of_drops_that_bring_something_is_borne(server, remote):
    plan(server, remote, *[("drop", 1500)] * 5)
    fetch(with_md5(remote), QUICK)
    assert is_whole(remote)


def test_a_second_command_goes_on_where_the_first_gave_up(server, remote):
    path = plan(server, remote, ("drop", 4000), *[("status", 503, {})] * 3)
    with pytest.raises(FetchError) as error:
        fetch(remote, QUICK)
    message = str(error.value)
    assert remote.url in message and str(remote.path) in message and "HTTP 503" in message
    assert "given up after 3 attempts" in message and "run the command again" in message
    assert not remote.path.exists() and remote.on_disk() == 4000
    fetch(with_md5(remote), QUICK)
    assert is_whole(remote) and server.gets(path)[-1] == "bytes=4000-"


def test_ignored_ranges_start_anew(server, remote):
    path, steps = plan(server, remote, ("drop", 1000), "ignore_range"), []
    fetch(with_md5(remote), QUICK, steps.append)
    assert is_whole(remote) and sum(steps) == len(CONTENT)
    assert server.gets(path) == [None, "bytes=1000-"]


def test_without_a_version_a_part_is_not_added_to(server, remote):
    path = plan(server, remote, ("drop", 1000))
    server.headers[path]["ETag"] = 'W/"weak"'
    fetch(with_md5(remote), QUICK)
    assert is_whole(remote) and server.gets(path) == [None, None]


def test_a_file_changed_meanwhile_is_not_mixed(server, remote):
    path = plan(server, remote, ("drop", 1000), "changed")
    fetch(remote, QUICK)
    assert server.gets(path) == [None, "bytes=1000-"]
    assert remote.path.read_bytes() == CONTENT[::-1]


def test_a_part_from_another_address_is_not_mixed(server, remote):
    path = plan(server, remote, ("drop", 1000), *[("status", 500, {})] * 3)
    with pytest.raises(FetchError, match="HTTP 500"):
        fetch(remote, QUICK)
    moved = Remote(f"{remote.url}.moved", remote.path)
    server.files[f"{path}.moved"] = CONTENT
    fetch(moved, QUICK)
    assert is_whole(remote) and server.gets(f"{path}.moved") == [None]


def test_another_part_than_asked_for_is_thrown_away(server, remote):
    path = plan(server, remote, ("drop", 1000), "other_part")
    fetch(with_md5(remote), QUICK)
    assert is_whole(remote) and server.gets(path) == [None, "bytes=1000-", None]


def test_a_part_that_is_longer_than_the_file_is_thrown_away(server, remote):
    path = plan(server, remote, ("drop", 1000), *[("status", 500, {})] * 3)
    with pytest.raises(FetchError):
        fetch(remote, QUICK)
    remote.partial.write_bytes(CONTENT + b"more")
    fetch(with_md5(remote), QUICK)
    assert is_whole(remote) and server.gets(path)[-2:] == [f"bytes={len(CONTENT) + 4}-", None]


@pytest.mark.parametrize("whole", [True, False])
def test_a_whole_file_that_was_not_checked_is_checked_and_not_fetched_again(server, remote, whole):
    path = plan(server, remote, ("drop", 1000), *[("status", 500, {})] * 3)
    with pytest.raises(FetchError):
        fetch(remote, QUICK)
    plan(server, remote)  # no more errors: how many are left depends on what came before the drop
    remote.partial.write_bytes(CONTENT if whole else CONTENT[::-1])
    asked = len(server.gets(path))
    fetch(with_md5(remote), QUICK)
    ranges = [f"bytes={len(CONTENT)}-", *[None] * (not whole)]
    assert is_whole(remote) and server.gets(path)[asked:] == ranges


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_refusals_are_final_and_named(server, remote, code):
    path = plan(server, remote, ("status", code, {}))
    with pytest.raises(FetchError, match=rf"HTTP {code} .*file\.bin cannot be had.*--mirror") as e:
        fetch(remote, QUICK)
    assert remote.url in str(e.value) and len(server.gets(path)) == 1
    assert not remote.path.exists()


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_passing_errors_are_tried_again(server, remote, code):
    plan(server, remote, *[("status", code, {})] * 2)
    fetch(with_md5(remote), QUICK)
    assert is_whole(remote)


def test_servers_say_how_long_to_wait(server, remote, monkeypatch):
    waits = []
    clock = SimpleNamespace(sleep=waits.append, time=time.time)
    monkeypatch.setattr(transfer, "time", clock)
    soon = email.utils.formatdate(time.time() + 60, usegmt=True)
    told = [{"Retry-After": "7"}, {"Retry-After": soon}, {"Retry-After": "9999"}, {}]
    told.append({"Retry-After": "tomorrow"})
    plan(server, remote, *[("status", 503, headers) for headers in told])
    fetch(remote, Patience(attempts=6, first_wait=1.0, longest_wait=100.0, timeout=5.0))
    assert waits == [7, pytest.approx(59, abs=2), 100, 8, 16]


def test_truncated_file_is_not_taken_for_whole(server, remote):
    published = with_md5(remote, md5=None, size=len(CONTENT))
    plan(server, remote, *[("truncate", 5000)] * 3)
    with pytest.raises(FetchError, match=r"5000 bytes came, published are 10240"):
        fetch(published, QUICK)
    assert list(remote.path.parent.iterdir()) == []
    fetch(published, QUICK)
    assert is_whole(remote)


def test_wrong_bytes_are_thrown_away(server, remote):
    plan(server, remote, *["wrong"] * 3)
    with pytest.raises(FetchError, match=rf"wrong bytes: MD5 [0-9a-f]{{32}}, published is {MD5}"):
        fetch(with_md5(remote), QUICK)
    assert list(remote.path.parent.iterdir()) == []
    plan(server, remote, "wrong")
    fetch(with_md5(remote), QUICK)
    assert is_whole(remote)


@pytest.mark.parametrize(
    "headers",
    [
        {"x-goog-hash": f"crc32c=AAAA,md5={base64.b64encode(bytes.fromhex(MD5)).decode()}"},
        {"Server": "AmazonS3", "ETag": f'"{MD5}"'},
    ],
)
def test_checksums_that_servers_tell_are_checked(server, remote, headers):
    path = plan(server, remote, *["wrong"] * 3)
    server.headers[path] = headers
    with pytest.raises(FetchError, match=rf"told by the server is {MD5}"):
        fetch(remote, QUICK)
    fetch(remote, QUICK)
    assert is_whole(remote)


def test_tags_of_other_servers_are_no_checksums(server, remote):
    path = plan(server, remote)
    server.headers[path] = {"ETag": f'"{"0" * 32}"'}
    fetch(remote, QUICK)
    assert is_whole(remote)


def test_length_may_be_untold(server, remote):
    plan(server, remote, "no_length")
    fetch(with_md5(remote), QUICK)
    assert is_whole(remote)


def test_silence_ends(server, remote):
    plan(server, remote, *["hang"] * 2)
    impatient = Patience(attempts=2, first_wait=0.0, longest_wait=0.0, timeout=0.2)
    with pytest.raises(FetchError, match="given up after 2 attempts: no answer"):
        fetch(remote, impatient)


def test_no_server_is_an_error_that_says_so(tmp_path):
    with pytest.raises(FetchError, match=r"http://127\.0\.0\.1:9/x: given up .*no connection"):
        fetch(Remote("http://127.0.0.1:9/x", tmp_path / "x"), QUICK)


def test_files_of_a_folder(tmp_path):
    source = tmp_path / "mirror file.bin"
    source.write_bytes(CONTENT)
    remote = Remote(source.as_uri(), tmp_path / "folder/file.bin", len(CONTENT), MD5)
    assert remote_size(Remote(source.as_uri(), remote.path), 5.0) == len(CONTENT)
    fetch(remote, QUICK)
    assert is_whole(remote)
    gone = Remote((tmp_path / "gone").as_uri(), tmp_path / "folder/gone")
    with pytest.raises(FetchError, match=r"gone: no such file, wanted as .*does --mirror have it"):
        fetch(gone, QUICK)
    folder = Remote(tmp_path.as_uri(), tmp_path / "folder/x")  # cannot be read, now or later
    with pytest.raises(FetchError, match=r": cannot be read: Is a directory$"):
        fetch(folder, QUICK)


def test_sizes_are_asked_for(server, remote):
    assert remote_size(remote, 5.0) == len(CONTENT)
    assert remote_size(with_md5(remote, size=7), 5.0) == 7
    with pytest.raises(FetchError, match="HTTP 404"):
        remote_size(Remote(f"{server.url}/nowhere", remote.path), 5.0)


def test_a_full_disk_names_the_file_and_what_came_stays(server, remote):
    with (
        small_files(1000),
        pytest.raises(OSError, match=r"cannot write .*/\.file\.bin\.partial: File too large"),
    ):
        fetch(remote, QUICK)
    assert remote.partial.stat().st_size == 1000
    fetch(remote, QUICK)
    assert is_whole(remote)


def test_room_is_looked_for_first(tmp_path, monkeypatch):
    usage = SimpleNamespace(free=5_000_000)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: usage)
    check_free_space(tmp_path / "not/there/yet", 5_000_000)
    with pytest.raises(FetchError, match=r"20\.2 GB are needed and 5\.0 MB are free; make room"):
        check_free_space(tmp_path, 20_200_000_000)
    assert [in_words(n) for n in (999, 1000, 2.5e15)] == ["999 bytes", "1.0 KB", "2500.0 TB"]
