"""Generated tables are written where their places are, and nowhere else."""

import cv2
import numpy as np
import pytest

from claims import readme


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "FIGURES", {})
    (tmp_path / "docs/claims").mkdir(parents=True)
    (tmp_path / "README.md").write_text("<!-- one -->\nold\n<!-- /one -->\nkept\n")
    (tmp_path / "docs/page.md").write_text(
        "before\n<!-- two -->\nb\n<!-- /two -->\n\n<!-- one -->\n<!-- /one -->\n"
    )
    return tmp_path


def test_tables_go_between_their_marks_on_every_page(root, monkeypatch):
    monkeypatch.setattr(readme, "TABLES", {"one": lambda root: "| \\a |", "two": lambda root: "b"})
    assert readme.write_readme(root) == ["one"]
    one = "<!-- one -->\n| \\a |\n<!-- /one -->\n"
    assert (root / "README.md").read_text() == f"{one}kept\n"
    two = "<!-- two -->\nb\n<!-- /two -->\n"
    assert (root / "docs/page.md").read_text() == f"before\n{two}\n{one}"
    assert readme.write_readme(root) == []


def test_a_figure_is_the_top_of_its_montage_without_a_cut_row(root, monkeypatch):
    monkeypatch.setattr(readme, "TABLES", {})
    monkeypatch.setattr(readme, "FIGURES", {"docs/a.jpg": ("montage.png", 70)})
    montage = np.full((100, 50, 3), 255, np.uint8)
    montage[10:40] = montage[50:90] = 0
    cv2.imwrite(str(root / "montage.png"), montage)
    assert readme.write_readme(root) == ["docs/a.jpg"]
    assert cv2.imread(str(root / "docs/a.jpg")).shape == (49, 50, 3)
    assert readme.write_readme(root) == []


def test_records_of_the_claims_are_no_page(root, monkeypatch):
    monkeypatch.setattr(readme, "TABLES", {"one": lambda root: "a"})
    record = root / "docs/claims/table.md"
    record.write_text("<!-- one -->\n<!-- /one -->\n")
    readme.write_readme(root)
    assert record.read_text() == "<!-- one -->\n<!-- /one -->\n"


def test_a_place_that_is_nowhere_is_an_error_and_nothing_is_written(root, monkeypatch):
    monkeypatch.setattr(readme, "TABLES", {"one": lambda root: "a", "three": lambda root: "c"})
    with pytest.raises(ValueError, match="<!-- three -->"):
        readme.write_readme(root)
    assert "old" in (root / "README.md").read_text()


@pytest.mark.parametrize("name", ["results", "claims"])
def test_without_results_it_says_which_command_makes_them(tmp_path, name):
    with pytest.raises(ValueError, match="`make "):
        readme.TABLES[name](tmp_path)
