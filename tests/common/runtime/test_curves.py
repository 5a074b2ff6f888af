"""A curve that grows is in its file while it does, and ends with the same bytes."""

from stages.common.runtime import curves
from stages.common.runtime.curves import Curve


def take_steps(curve: Curve) -> None:
    for step in range(1, 5):
        curve.add(step, loss=1 / step)


def test_a_growing_curve_is_written_as_it_grows(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "SECONDS_BETWEEN", 0.0)
    file = tmp_path / "data/curve.csv"
    growing = Curve(every=2, growing=file)
    growing.add(1, loss=3.0)
    assert not file.exists()
    growing.add(2, loss=2.0)
    assert file.read_text() == "step,loss\n2,2.5\n"


def test_its_bytes_in_the_end_are_those_of_any_curve(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "SECONDS_BETWEEN", 0.0)
    plain, growing = Curve(every=2), Curve(every=2, growing=tmp_path / "growing.csv")
    for curve, name in ((plain, "plain.csv"), (growing, "growing.csv")):
        take_steps(curve)
        curve.write(tmp_path / name)
    assert (tmp_path / "plain.csv").read_bytes() == (tmp_path / "growing.csv").read_bytes()
