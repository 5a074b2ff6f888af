"""download: members of zip archives by offset, as `zipfile` itself reads them, or refused."""

import re
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.download.sources.open_images.zip_members import Member, list_members, read_member

NOISE = np.random.default_rng(0).bytes(3000)


def write(path: Path, contents: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


@given(st.lists(st.binary(max_size=300), max_size=5), st.sampled_from([0, 8]), st.binary())
@settings(max_examples=40, deadline=None)
def test_members_are_what_zipfile_reads(tmp_path_factory, contents, method, before):
    named = {f"ö{number}.png": content for number, content in enumerate(contents)}
    path = write(tmp_path_factory.mktemp("archive") / "a.zip", named, method)
    path.write_bytes(before + path.read_bytes())  # as of an archive that unpacks itself
    assert {member.name: read_member(path, member) for member in list_members(path)} == named


def test_streamed_large_and_nested_members_are_read(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("folder")
        with archive.open("folder/a", "w", force_zip64=True) as file:  # extra fields
            file.write(NOISE)
    (member,) = list_members(path)
    assert (member.name, read_member(path, member)) == ("folder/a", NOISE)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damage_is_found_and_named(tmp_path, method):
    path = write(tmp_path / "a.zip", {"first": NOISE, "last": NOISE[::-1]}, method)
    first, last = list_members(path)
    whole = path.read_bytes()
    for place in range(first.offset + 40, last.offset, 211):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x20]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"a\.zip: first is damaged: .*; remove the archive"):
            read_member(path, first)
        assert read_member(path, last) == NOISE[::-1]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda whole, last: whole[: last.offset + 100], "65 of 3000 bytes are there"),
        (lambda whole, last: whole[: last.offset + 7], "requires a buffer of 30 bytes"),
        (lambda whole, last: b"\0" + whole, "no file begins at the listed offset"),
    ],
)
def test_an_archive_that_changed_is_refused(tmp_path, spoil, reason):
    path = write(tmp_path / "a.zip", {"first": NOISE, "last.": NOISE}, zipfile.ZIP_STORED)
    _, last = list_members(path)
    path.write_bytes(spoil(path.read_bytes(), last))
    with pytest.raises(ValueError, match=rf"last\. is damaged: .*{re.escape(reason)}"):
        read_member(path, last)


def test_more_than_was_listed_is_not_unpacked(tmp_path):
    path = write(tmp_path / "a.zip", {"zeros": bytes(1_000_000)})
    (member,) = list_members(path)
    with pytest.raises(ValueError, match="its checksum or size is wrong"):
        read_member(path, replace(member, size=10))


def test_other_packings_and_encryption_are_refused(tmp_path):
    path = write(tmp_path / "a.zip", {"a": b"x" * 100}, zipfile.ZIP_BZIP2)
    with pytest.raises(ValueError, match=r"a\.zip: a is encrypted or packed by method 12, not"):
        list(list_members(path))
    path = write(tmp_path / "a.zip", {"a": b"x"}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # flags of the central directory
    path.write_bytes(content)
    with pytest.raises(ValueError, match="encrypted"):
        list(list_members(path))


def test_missing_archives_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.zip"):
        read_member(tmp_path / "none.zip", Member("a", 0, 1, 1, 0, 0))
