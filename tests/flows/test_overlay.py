import pytest

from flows.overlay import apply_overlay, apply_profile, read_params

PARAMS = """\
# The whole experiment.
shards: [0, 1, 2, 3]  # one file each
seed: 0

wspn:  # proposals
  steps: 3000  # paper: 90k
  rates:
    first: 0.1  # of SGD
    last: 1.0e-3
  name: "resnet"
  weights: null  # random
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "experiments").mkdir()
    return tmp_path


def overlay(project, text: str, name: str = "smoke") -> list[str]:
    (project / "experiments" / f"{name}.yaml").write_text(text)
    return apply_profile(project, name)


def test_only_the_named_values_change_and_comments_stay(project):
    told = overlay(project, "shards: [0, 1]\nwspn: {steps: 5, rates: {last: 0.5}}\n")
    assert told == [
        "shards: [0, 1, 2, 3] → [0, 1]",
        "wspn.steps: 3000 → 5",
        "wspn.rates.last: 0.001 → 0.5",
    ]
    expected = PARAMS.replace("0, 1, 2, 3", "0, 1").replace("3000", "5").replace("1.0e-3", "0.5")
    written = (project / "params.yaml").read_text()
    assert written.split() == expected.split()  # a comment stays in its column
    assert len(written.splitlines()) == len(PARAMS.splitlines())


def test_nothing_to_change_leaves_the_bytes(project):
    assert overlay(project, "seed: 0\n") == []
    assert (project / "params.yaml").read_text() == PARAMS


def test_line_endings_of_windows_become_those_of_the_repository(project):
    (project / "params.yaml").write_bytes(PARAMS.replace("\n", "\r\n").encode())
    assert overlay(project, "seed: 1\r\n") == ["seed: 0 → 1"]
    assert (project / "params.yaml").read_bytes() == PARAMS.replace("seed: 0", "seed: 1").encode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wspn: {step: 5}", r"experiments/smoke\.yaml: wspn\.step: params\.yaml has no such key; "
         r"did you mean 'wspn\.steps'\?"),
        ("gpu: 1", r"experiments/smoke\.yaml: gpu: params\.yaml has no such key; it has \["),
        ("wspn: 5", r"wspn: params\.yaml has a section here, found 5"),
        ("seed: {a: 1}", r"seed: params\.yaml has a value \(0\) here"),
        ("[1]", r"smoke\.yaml: expected a mapping"),
        ("a: [", r"smoke\.yaml: not valid YAML: line \d: "),
        ("", r"smoke\.yaml: expected a mapping of params to values, found None"),
        ("seed: 1\nseed: 2", r"smoke\.yaml: not valid YAML: line 2: found duplicate key"),
        ("extends: smoke", r"smoke\.yaml: extends: a circle, smoke → smoke"),
    ],
)  # fmt: skip
def test_wrong_overlays_name_file_and_key_and_change_nothing(project, text, message):
    with pytest.raises(ValueError, match=message) as error:
        overlay(project, text)
    assert "\n" not in str(error.value)
    assert (project / "params.yaml").read_text() == PARAMS


def test_a_mapping_of_another_kind_takes_the_place_of_the_old_one(project):
    text = PARAMS + "model:\n  net: {kind: small, width: 3}\n  after: 1  # kept\n"
    (project / "params.yaml").write_text(text)
    (project / "experiments/wide.yaml").write_text("model: {net: {kind: small, width: 9}}\n")
    assert overlay(project, "extends: wide\nmodel: {net: {kind: large, depth: 5}}\n") == [
        "model.net: {'kind': 'small', 'width': 3} → {'kind': 'large', 'depth': 5}"
    ]
    assert overlay(project, "model: {net: {depth: 7}}\n") == ["model.net.depth: 5 → 7"]
    assert "after: 1  # kept" in (project / "params.yaml").read_text()
    with pytest.raises(ValueError, match=r"model\.net\.width: params\.yaml has no such key"):
        overlay(project, "model: {net: {kind: large, width: 3}}\n")


def test_a_mapping_with_the_tag_replace_takes_the_place_of_the_old_one(project):
    whole = "wspn: {rates: !replace {only: 0.5}}\n"
    (project / "experiments/one.yaml").write_text(whole)
    assert overlay(project, "extends: one\nwspn: {rates: {only: 0.25}}\n") == [
        "wspn.rates: {'first': 0.1, 'last': 0.001} → {'only': 0.25}"
    ]
    assert read_params(project)["wspn"] == {
        "steps": 3000,
        "rates": {"only": 0.25},
        "name": "resnet",
        "weights": None,
    }
    assert overlay(project, "extends: one\n") == ["wspn.rates: {'only': 0.25} → {'only': 0.5}"]
    assert overlay(project, whole) == []
    assert "!replace" not in (project / "params.yaml").read_text()


def test_unknown_profile_names_those_there_are(project):
    overlay(project, "seed: 1\n", "tiny")
    with pytest.raises(ValueError, match=r"experiments/smok\.yaml: no such profile; .*: tiny"):
        apply_profile(project, "smok")


def test_overlay_of_a_sweep_point_names_its_source(project):
    assert apply_overlay(project / "params.yaml", {"seed": 2}, "-S") == ["seed: 0 → 2"]
    with pytest.raises(ValueError, match=r"-S: sed: params\.yaml has no such key"):
        apply_overlay(project / "params.yaml", {"sed": 2}, "-S")


def test_a_profile_may_extend_another(project):
    (project / "experiments/large.yaml").write_text(
        "seed: 3\nwspn: {steps: 7, rates: {last: 0.5}}\n"
    )
    told = overlay(project, "extends: large\nwspn: {steps: 5, rates: {first: 0.2}}\n")
    assert sorted(told) == [
        "seed: 0 → 3",
        "wspn.rates.first: 0.1 → 0.2",
        "wspn.rates.last: 0.001 → 0.5",
        "wspn.steps: 3000 → 5",
    ]
    with pytest.raises(ValueError, match=r"experiments/larger\.yaml: no such profile"):
        overlay(project, "extends: larger\nseed: 1\n")
