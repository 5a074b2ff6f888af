"""Files are whole, private to nobody, and the same bytes for the same content."""

import errno
from pathlib import Path

import pytest
import torch

from stages.common.runtime.storage import (
    read_facts,
    read_json,
    read_tensors,
    replace_file,
    write_json,
    write_tensors,
)


def test_every_kind_of_file_has_the_mode_that_new_files_have(tmp_path: Path):
    (tmp_path / "plain").touch()
    write_json(tmp_path / "a.json", {})
    write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)})
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_equal_tensors_and_facts_give_equal_bytes(tmp_path: Path):
    values = {"b": torch.arange(6).reshape(2, 3).t(), "a": torch.ones(1)}
    write_tensors(tmp_path / "1.safetensors", values, {"x": 1, "y": 2})
    write_tensors(tmp_path / "2.safetensors", dict(reversed(values.items())), {"y": 2, "x": 1})
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()
    tensors, facts = read_tensors(tmp_path / "1.safetensors")
    assert torch.equal(tensors["b"], values["b"]) and facts == {"x": 1, "y": 2}


def test_facts_are_read_without_the_tensors(tmp_path: Path):
    write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)}, {"x": 1})
    assert read_facts(tmp_path / "a.safetensors") == {"x": 1}
    (tmp_path / "b.safetensors").write_bytes(b"no tensors at all")
    for read in (read_facts, read_tensors):
        with pytest.raises(ValueError, match=r"b\.safetensors: not a safetensors file"):
            read(tmp_path / "b.safetensors")
        with pytest.raises(FileNotFoundError, match="no such file"):
            read(tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a.jpg": "a cat", "b.jpg": "", "a.jpg": "a dog"}', "key 'a.jpg' is given twice"),
        ('[{"images": [{"id": 1, "id": 2}]}]', "key 'id' is given twice in one object; give it"),
        ("{", "Expecting property name"),
        ("[" * 100_000, "recursion"),
        ("1" * 5000, "Exceeds the limit"),
    ],
)
def test_json_that_is_none_or_loses_a_value_is_refused(tmp_path: Path, text, told):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=rf"/a\.json: not valid JSON: .*{told}"):
        read_json(tmp_path / "a.json")


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path: Path):
    path = tmp_path / "a.json"
    write_json(path, [1])
    with pytest.raises(OSError, match=r"cannot write .*a\.json: No space"), replace_file(path) as p:
        p.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert read_json(path) == [1]
    assert list(tmp_path.iterdir()) == [path]
