"""A method's params are merged into those of params.yaml, and its faults are named."""

import pytest

from stages.common.runtime.params import Section, read_section


class Resize(Section):
    side: int
    longest: int


class Model(Section):
    resize: Resize
    sides: list[int]


def read(tmp_path, method: str) -> Model:
    (tmp_path / "params.yaml").write_text("model: {resize: {side: 1, longest: 2}, sides: [1, 2]}")
    (tmp_path / "method.yaml").write_text(method, errors="surrogateescape")
    return read_section("model", Model, tmp_path / "params.yaml", tmp_path / "method.yaml")


def test_mappings_are_merged_and_all_else_is_replaced(tmp_path):
    found = read(tmp_path, "params: {model: {resize: {side: 9}, sides: [3]}}")
    assert found == Model(resize=Resize(side=9, longest=2), sides=[3])
    assert read(tmp_path, "params: {}").sides == [1, 2]


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (
            "params: {model: {resize: {sides: 9}}}",
            r"model\.resize\.sides: .*; did you mean 'side'\?$",
        ),
        ("params: {model: {resize: {zoom: 9}}}", r"zoom: .*; allowed keys: \['longest', 'side'\]$"),
        ("params: {model: {sides: 3}}", r"params\.yaml with .*method\.yaml: model\.sides: .* 3"),
        ("params: {models: {}}", r"method\.yaml: params: expected {model: …} or {}, found"),
        ("paper: null", r"method\.yaml: params: expected {model: …} or {}, found None"),
        ("", r"method\.yaml: expected a mapping of sections, found None"),
        ("[1, 2]", r"method\.yaml: expected a mapping of sections, found \[1, 2\]"),
        ("params: {}\nparams: {}", r"method\.yaml: not valid YAML.*duplicate key"),
        ("paper: caf\udce9", r"method\.yaml: .* not in UTF-8"),
        ("paper: !!int one", r"method\.yaml: not valid YAML.*'one'"),
    ],
)
def test_a_fault_names_file_and_key(tmp_path, method, told):
    with pytest.raises(ValueError, match=told) as error:
        read(tmp_path, method)
    assert "\n" not in str(error.value)


def test_a_misspelt_key_is_one_line_and_others_stay(tmp_path):
    (tmp_path / "params.yaml").write_text(
        "model: {resize: {sid: 1, longst: x}, sides: [a], zoom: 2}"
    )
    with pytest.raises(ValueError) as error:
        read_section("model", Model, tmp_path / "params.yaml")
    told = [line.partition(": ")[2] for line in str(error.value).splitlines()]
    assert sorted(line.partition(":")[0] for line in told) == [
        "model.resize.longst",
        "model.resize.sid",
        "model.sides.0",
        "model.zoom",
    ]
