"""README's tables are written where their places are, and nowhere else."""

import pytest

from flows import readme


def test_tables_go_between_their_marks(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "TABLES", {"one": lambda root: "| a |", "two": lambda root: "b"})
    path = tmp_path / "README.md"
    path.write_text("<!-- one -->\nold\n<!-- /one -->\nkept\n<!-- two -->\nb\n<!-- /two -->\n")
    assert readme.write_readme(tmp_path) == ["one"]
    expected = "<!-- one -->\n| a |\n<!-- /one -->\nkept\n<!-- two -->\nb\n<!-- /two -->\n"
    assert path.read_text() == expected
    assert readme.write_readme(tmp_path) == []


def test_a_place_that_is_not_there_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "TABLES", {"one": lambda root: "a"})
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(ValueError, match=r"README\.md has no <!-- one -->"):
        readme.write_readme(tmp_path)


@pytest.mark.parametrize("make", [readme._results, readme._claims])
def test_without_results_it_says_which_command_makes_them(tmp_path, make):
    with pytest.raises(ValueError, match="`make "):
        make(tmp_path)
