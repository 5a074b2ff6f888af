"""docs/architecture.md says what each part of flows/ is for, and how many lines that may take."""

import re

ROW = re.compile(r"^\| ((?:`[\w*/.]+\.py`(?:, )?)+) \| (\d+) \| \S", re.MULTILINE)


def test_every_file_has_a_purpose_and_stays_within_its_lines(repository):
    rows = ROW.findall((repository / "docs/architecture.md").read_text(encoding="utf-8"))
    sizes = {
        path.relative_to(repository / "flows").as_posix(): len(path.read_text().splitlines())
        for path in (repository / "flows").rglob("*.py")
        if path.name != "__init__.py"
    }
    explained = []
    for names, most in rows:
        folder = repository / "flows"
        files = [
            path.relative_to(folder).as_posix()
            for name in re.findall(r"`(.+?)`", names)
            for path in folder.glob(name)
            if path.name != "__init__.py"
        ]
        lines = sum(sizes[file] for file in files)
        assert files and lines <= int(most), f"{names}: {lines} lines; drop some, or say what for"
        explained += files
    assert sorted(explained) == sorted(sizes)
