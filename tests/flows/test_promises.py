"""docs/architecture.md says what each file of flows/ is for."""

import re

ROW = re.compile(r"^\| ((?:`[\w*/.]+\.py`(?:, )?)+) \| \S", re.MULTILINE)


def test_every_file_is_of_one_part_with_a_promise(repository):
    folder = repository / "flows"
    text = (repository / "docs/architecture.md").read_text(encoding="utf-8")
    promised = [
        path.relative_to(folder).as_posix()
        for names in ROW.findall(text)
        for name in re.findall(r"`(.+?)`", names)
        for path in folder.glob(name)
        if path.name != "__init__.py"
    ]
    files = [path for path in folder.rglob("*.py") if path.name != "__init__.py"]
    assert sorted(promised) == sorted(path.relative_to(folder).as_posix() for path in files)
