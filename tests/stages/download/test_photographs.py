"""download: JPEGs that end too early, whatever is inside them and behind them."""

import cv2
import numpy as np
import pytest

from stages.download.photographs import is_cut_short, read_photograph
from tests.support.images import noise_jpeg

FORMS = {
    "baseline": [],
    "progressive": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
    "restarts": [cv2.IMWRITE_JPEG_RST_INTERVAL, 1],
    "worst": [cv2.IMWRITE_JPEG_QUALITY, 1],
}
TRAILERS = {
    "nothing": b"",
    "text": b"trailing bytes",
    "a scan": b"\xff\xda\x00\x03abc",
    "a cut image": b"\xff\xd8\xff\xda\x00\x02abc",
    "film": b"\x00\x00\x00\x18ftypmp42" + np.random.default_rng(0).bytes(300_000),
}


def jpeg(form: str, height: int = 33, width: int = 50) -> bytes:
    """Return noise, whose data has every byte, 0xff among them."""
    return noise_jpeg(height, width, options=FORMS[form])


def with_thumbnail(encoded: bytes, thumbnail: bytes) -> bytes:
    """Return a JPEG with another one in its first segment, as cameras write them."""
    content = b"Exif\x00\x00" + thumbnail
    segment = b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content
    return encoded[:2] + segment + encoded[2:]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("trailer", TRAILERS)
def test_what_follows_a_whole_image_does_not_count(form, trailer):
    assert not is_cut_short(jpeg(form) + TRAILERS[trailer])
    assert not is_cut_short(with_thumbnail(jpeg(form), jpeg("baseline", 8, 8)) + TRAILERS[trailer])


@pytest.mark.parametrize("form", FORMS)
def test_every_cut_is_found(form):
    for whole in (jpeg(form), with_thumbnail(jpeg(form), jpeg("baseline", 8, 8))):
        assert all(is_cut_short(whole[:length]) for length in range(2, len(whole)))


def test_fill_bytes_before_a_marker_are_allowed():
    whole = jpeg("baseline")
    filled = whole.replace(b"\xff\xda", b"\xff\xff\xff\xda")[:-2] + b"\xff\xff\xff\xd9"
    assert not is_cut_short(filled) and is_cut_short(filled[:-1])


def test_only_jpegs_can_be_cut_short(tmp_path):
    assert not is_cut_short(b"\x89PNG") and not is_cut_short(b"")
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg("baseline")[:-2])
    assert read_photograph(path, 1, "a.jpg").reason.startswith("JPEG without an end, cut short at")
    path.write_bytes(jpeg("baseline") + TRAILERS["film"])
    assert read_photograph(path, 1, "a.jpg").encoded == path.read_bytes()


def test_images_of_almost_one_colour_are_skipped(tmp_path):
    """Decoders keep the upper half of 16 bits and drop transparency."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3))
    drawing = np.zeros((20, 30, 4), np.uint8)
    drawing[5:15, 5:15, 3] = 255
    twelve_bits = (pixels * 16).astype(np.uint16)
    for name, image, values in (
        ("a.png", twelve_bits, "(0 to 15 of 255)"),
        ("a.tif", twelve_bits, "(0 to 16 of 255)"),
        ("a.png", drawing, "(0 to 0 of 255)"),
    ):
        cv2.imwrite(str(tmp_path / name), image)
        reason = read_photograph(tmp_path / name, 1, name).reason
        assert reason.startswith(f"is almost of one colour {values}; save 12 bits")
    cv2.imwrite(str(tmp_path / "a.png"), (pixels * 257).astype(np.uint16))
    assert read_photograph(tmp_path / "a.png", 1, "a.png").height == 20
