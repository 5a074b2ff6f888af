"""Images that stay on the disk until they are decoded."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest

from stages.common.formats.images import ROW_GROUP, EncodedImage, read_images, write_images
from stages.common.formats.stored_images import StoredImages, find_images


@pytest.fixture
def shards(tmp_path):
    """Give two shards of images of 1000 bytes, the first one of three row groups."""
    random = np.random.default_rng(0)
    images = [
        EncodedImage(k, f"{k}.jpg", 2, 3, random.bytes(1000)) for k in range(2 * ROW_GROUP + 5)
    ]
    paths = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    write_images(paths[0], images)
    write_images(paths[1], [EncodedImage(999, "last.jpg", 4, 5, b"last")])
    return paths


def test_order_facts_and_bytes_are_those_of_the_shards(shards):
    stored = StoredImages(*shards)
    for found, expected in zip(stored, read_images(*shards), strict=True):
        for name in ("image_id", "file_name", "height", "width"):
            assert getattr(found, name) == getattr(expected, name)
        assert stored.read(found.place) == expected.encoded


def test_memory_is_bounded_in_whatever_order_images_are_read(shards):
    group = ROW_GROUP * 1000
    stored = StoredImages(*shards, kept_bytes=group + group // 2)
    places = [image.place for image in stored]
    expected = [image.encoded for image in read_images(*shards)]
    assert stored.kept_bytes == 0
    for k in np.random.default_rng(1).permutation(len(places)):
        assert stored.read(places[k]) == expected[k]
        assert 0 < stored.kept_bytes <= 1.5 * group
    small = StoredImages(*shards, kept_bytes=1)
    assert small.read(places[0]) == expected[0]  # a group that is larger than the limit
    assert group < small.kept_bytes < 1.1 * group


def test_what_fits_is_read_once(shards):
    stored = StoredImages(*shards)
    places = [image.place for image in stored]
    first = [stored.read(place) for place in places]
    for shard in shards:
        shard.unlink()
    assert [stored.read(place) for place in places] == first


def test_the_footer_is_read_once(shards):
    stored = StoredImages(*shards, kept_bytes=1)
    for shard in shards:
        with shard.open("r+b") as file:
            file.seek(-8, 2)  # the length of the footer and the mark that a reader looks for
            file.write(bytes(8))
    places = [image.place for image in stored]
    assert len(places) == 2 * ROW_GROUP + 6
    assert stored.read(places[0]) and stored.read(places[-1]) == b"last"


def test_threads_may_share_them(shards):
    stored = StoredImages(*shards, kept_bytes=1)
    places = [image.place for image in stored]
    expected = [image.encoded for image in read_images(*shards)]
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
    found = find_images(set(chosen), *shards)
    assert [image.image_id for image in found] == chosen and not read
    expected = [p.encoded for p in read_images(*shards) if p.image_id in chosen]
    assert [image.source.read(image.place) for image in found] == expected
    assert read == [(2 * ROW_GROUP + 5, 1), (1, 0)]


def test_a_missing_shard_is_named(shards, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"2\.parquet: no such image shard"):
        StoredImages(*shards, tmp_path / "2.parquet")


def test_a_broken_image_is_named(shards):
    *_, last = StoredImages(*shards)
    with pytest.raises(ValueError, match=r"last\.jpg: cannot be decoded"):
        last.decode()
