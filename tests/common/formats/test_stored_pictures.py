"""Pictures that stay on the disk until they are decoded."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest

from stages.common.formats.images import ROW_GROUP, Picture, read_pictures, write_pictures
from stages.common.formats.stored_pictures import StoredPictures, find_pictures


@pytest.fixture
def shards(tmp_path):
    """Give two shards of pictures of 1000 bytes, the first one of three row groups."""
    random = np.random.default_rng(0)
    pictures = [Picture(k, f"{k}.jpg", 2, 3, random.bytes(1000)) for k in range(2 * ROW_GROUP + 5)]
    paths = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    write_pictures(paths[0], pictures)
    write_pictures(paths[1], [Picture(999, "last.jpg", 4, 5, b"last")])
    return paths


def test_order_facts_and_bytes_are_those_of_the_shards(shards):
    stored = StoredPictures(*shards)
    for found, expected in zip(stored, read_pictures(*shards), strict=True):
        for name in ("image_id", "file_name", "height", "width"):
            assert getattr(found, name) == getattr(expected, name)
        assert stored.read(found.place) == expected.encoded


def test_memory_is_bounded_in_whatever_order_pictures_are_read(shards):
    group = ROW_GROUP * 1000
    stored = StoredPictures(*shards, kept_bytes=group + group // 2)
    places = [picture.place for picture in stored]
    expected = [picture.encoded for picture in read_pictures(*shards)]
    assert stored.kept_bytes == 0
    for k in np.random.default_rng(1).permutation(len(places)):
        assert stored.read(places[k]) == expected[k]
        assert 0 < stored.kept_bytes <= 1.5 * group
    small = StoredPictures(*shards, kept_bytes=1)
    assert small.read(places[0]) == expected[0]  # a group that is larger than the limit
    assert group < small.kept_bytes < 1.1 * group


def test_what_fits_is_read_once(shards):
    stored = StoredPictures(*shards)
    places = [picture.place for picture in stored]
    first = [stored.read(place) for place in places]
    for shard in shards:
        shard.unlink()
    assert [stored.read(place) for place in places] == first


def test_the_footer_is_read_once(shards):
    stored = StoredPictures(*shards, kept_bytes=1)
    for shard in shards:
        with shard.open("r+b") as file:
            file.seek(-8, 2)  # the length of the footer and the mark that a reader looks for
            file.write(bytes(8))
    places = [picture.place for picture in stored]
    assert len(places) == 2 * ROW_GROUP + 6
    assert stored.read(places[0]) and stored.read(places[-1]) == b"last"


def test_threads_may_share_them(shards):
    stored = StoredPictures(*shards, kept_bytes=1)
    places = [picture.place for picture in stored]
    expected = [picture.encoded for picture in read_pictures(*shards)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(stored.read, places)) == expected


def test_of_a_sample_only_its_row_groups_are_read(shards, monkeypatch):
    read, read_row_group = [], pq.ParquetFile.read_row_group

    def note(file, group, columns):
        if "bytes" in columns:
            read.append((file.metadata.num_rows, group))
        return read_row_group(file, group, columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", note)
    chosen = [ROW_GROUP + 1, ROW_GROUP + 7, 999]
    found = find_pictures(set(chosen), *shards)
    assert [picture.image_id for picture in found] == chosen and not read
    expected = [p.encoded for p in read_pictures(*shards) if p.image_id in chosen]
    assert [picture.source.read(picture.place) for picture in found] == expected
    assert read == [(2 * ROW_GROUP + 5, 1), (1, 0)]


def test_a_missing_shard_is_named(shards, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"2\.parquet: no such image shard"):
        StoredPictures(*shards, tmp_path / "2.parquet")


def test_a_broken_picture_is_named(shards):
    *_, last = StoredPictures(*shards)
    with pytest.raises(ValueError, match=r"last\.jpg: cannot be decoded"):
        last.decode()
