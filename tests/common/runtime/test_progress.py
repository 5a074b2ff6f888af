"""Progress counts what is done, not what has been read ahead; curves have a row at least."""

import sys

import pytest

from stages.common.runtime import progress
from stages.common.runtime.curves import Curve
from stages.common.runtime.progress import track


@pytest.fixture
def lines(monkeypatch, capsys):
    """Give a function that returns the lines so far; each step is reported."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)

    def read() -> list[str]:
        return [line.split(" in ")[0] for line in capsys.readouterr().err.splitlines()]

    return read


def test_items_are_counted_when_the_next_is_asked_for(lines):
    seen = track(["a", "b"], "reading")
    assert next(seen) == "a"
    assert lines() == []
    assert next(seen) == "b"
    assert lines() == ["reading: 1/2"]
    assert list(seen) == []
    assert lines() == ["reading: 2/2", "reading: 2/2"]


def test_batches_count_their_images(lines):
    assert list(track(iter([[1, 2], [3]]), "images", 3, size=len)) == [[1, 2], [3]]
    assert lines() == ["images: 2/3", "images: 3/3", "images: 3/3"]


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(track([[1, 2], [3]], "images", 3, size=len)) == [[1, 2], [3]]
    assert "images: 100%" in capsys.readouterr().err


def test_a_training_too_short_for_a_row_of_its_curve_gets_one_all_the_same(tmp_path):
    curve = Curve(every=20)
    assert curve.last() == {}
    curve.add(1, loss=2.0)
    resumed = Curve(every=20)
    resumed.restore(curve.state())
    resumed.add(2, loss=4.0)
    resumed.write(tmp_path / "curve.csv")
    assert resumed.last() == {"loss": 3.0}
    assert (tmp_path / "curve.csv").read_text() == "step,loss\n2,3\n"
