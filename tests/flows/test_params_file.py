"""What is wrong with params.yaml as a whole is one line, before DVC looks at it."""

import pytest
from ruamel.yaml import YAML

from flows.params_file import check_params

DVC_YAML = """\
stages:
  boxes:
    matrix: {shard: "${shards}"}
    cmd: echo ${item.shard} ${network.width}
    params: [boxes.top_k, seed]
"""
PARAMS = {"shards": [0, 1], "seed": 0, "boxes": {"top_k": 1}, "network": {"width": 2}, "more": 3}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    (tmp_path / "comparators").mkdir()
    (tmp_path / "comparators/dvc.yaml").write_text(
        "stages: {other: {foreach: {a: 1}, do: {cmd: 'echo ${key} ${item}', params: [more.x]}}}\n"
    )
    return tmp_path


def check(root, params) -> None:
    YAML().dump(params, root / "params.yaml")
    check_params(root)


def test_what_the_stages_read_is_right(root, repository):
    check(root, PARAMS)
    check(root, PARAMS | {"network": {"width": [{"a": "data/b-1.json", "c": -0.5, "d": None}]}})
    check(root, PARAMS | {"boxes": {"top_k": "no template; $(has) it"}})
    check_params(repository)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": 4}, r"shards: expected .* such as \[0, 1, 2, 3\] for 4 shards, found 4"),
        ({"shards": [0, 2]}, r"shards: expected numbers from 0 on, .*, found \[0, 2\]"),
        ({"shards": [1, 0]}, r"shards: expected numbers from 0 on, .*, found \[1, 0\]"),
        ({"shards": [0.0, 1.0]}, r"shards: expected numbers from 0 on, .*, found \[0\.0, 1\.0\]"),
        ({"shards": []}, r"shards: expected numbers from 0 on, .*, found \[\]"),
        ({"shards": None}, r"shards: expected numbers from 0 on, .*, found None"),
        ({"shards": ...}, "section 'shards' is missing"),
        ({"network": ...}, "section 'network' is missing"),
        ({"more": ...}, "section 'more' is missing"),
        ({"max_images": 10}, "max_images: no stage reads a section of this name; sections are box"),
        ({"boxs": {"top_k": 2}}, "boxs: no stage reads a section of this name; did you mean 'boxe"),
        ({"boxs": {}, "boxes": ...}, r"boxs: no stage reads .*; did you mean 'boxes'\?"),
        ({7: {}}, "7: no stage reads a section of this name"),
        ({"network": {"width": "2; rm x"}}, r"network\.width: .* command or path; .* '2; rm x'"),
        ({"network": {"width": "--quick"}}, r"network\.width: .* command or path; .* '--quick'"),
        ({"network": {"width": "a/../../b"}}, r"network\.width: .*, found 'a/\.\./\.\./b'"),
        ({"network": {"width": [{"a b": 1}]}}, r"network\.width: .*, found 'a b'"),
        ({"network": {"width": [{"a": "b\n"}]}}, r"network\.width: .*, found 'b\\n'"),
    ],
)
def test_what_they_do_not_read_is_told(root, changes, message):
    params = {key: value for key, value in (PARAMS | changes).items() if value is not ...}
    with pytest.raises(ValueError, match=rf"^params\.yaml: {message}"):
        check(root, params)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected sections, found nothing"),
        ("# only\n", "expected sections, found nothing"),
        ("- 1\n", r"expected sections, found \[1\]"),
        ("boxes: {top_k: [1\n", "not valid YAML: "),
        ("seed: 1\nseed: 2\n", "not valid YAML: line 2: .*seed"),
        ("seed: \udce9\n", "incomplete UTF-8 .*at character 6; save the file as UTF-8"),
        ("seed: \0\n", "control characters are not allowed at character 6; save"),
        ("seed: !!int one\n", "not valid YAML: .*'one'"),
        ("a: {}\n---\nb: {}\n", "not valid YAML: line 2: .*another document"),
    ],
)
def test_a_file_without_sections_is_told_in_one_line(root, text, message):
    (root / "params.yaml").write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=rf"^params\.yaml: {message}.*") as error:
        check_params(root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", ["dvc.yaml", "comparators/dvc.yaml"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected stages, found nothing; `git checkout"),
        ("- 1\n", r"expected a mapping, found \[1\]"),
        ("stages: [boxes]\n", r"stages: expected a mapping, found \['boxes'\]"),
        ("stages: {boxes: 1}\n", "stages.boxes: expected a mapping, found 1"),
        ("stages: {boxes: {do: [1]}}\n", r"stages.boxes.do: expected a mapping, found \[1\]"),
        ("stages: {boxes: {params: 3}}\n", "stages.boxes.params: expected a list, found 3"),
        ("vars: 3\n", "vars: expected a list, found 3"),
        ("stages: {}\nstages: {}\n", "not valid YAML: line 2: "),
        ("stages: \udce9\n", "incomplete UTF-8 .*at character 8; save"),
    ],
)
def test_a_dvc_yaml_of_another_form_is_told_in_one_line(root, file, text, message):
    (root / file).write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=rf"^{file}: {message}") as error:
        check(root, PARAMS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", ["params.yaml", "dvc.yaml"])
def test_a_folder_in_the_files_place_is_told(root, file):
    (root / file).unlink(missing_ok=True)
    (root / file).mkdir()
    with pytest.raises(ValueError, match=rf"^{file}: cannot be read: Is a directory$"):
        check_params(root)


def test_a_missing_file_is_told(root):
    with pytest.raises(ValueError, match=r"params\.yaml: expected sections, found nothing; `git c"):
        check_params(root)
