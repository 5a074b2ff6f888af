"""The models, the comments of params.yaml, the schemas made of both, and the page say the same."""

import copy
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError
from ruamel.yaml import YAML

from flows.overlay import apply_profile, nest
from stages.preflight import section_model
from stages.schema import TopLevel, make_files, read_comments, walk

ROOT = Path(__file__).parents[2]
PROFILES = sorted((ROOT / "experiments").glob("*.yaml"))
PARAMS = YAML(typ="safe").load(ROOT / "params.yaml")
HEAD = re.compile(r"# yaml-language-server: \$schema=(\S+)\n")


def schema_of(path: Path) -> dict[str, Any]:
    """Return the schema that the head of a file names."""
    found = HEAD.match(path.read_text(encoding="utf-8"))
    assert found, f"{path.name}: its first line names no schema"
    return json.loads((path.parent / found[1]).read_text(encoding="utf-8"))


SCHEMA = schema_of(ROOT / "params.yaml")


def plain(path: Path) -> Any:
    """Return the content of a YAML file, tags such as !replace left out."""
    return json.loads(json.dumps(YAML().load(path)))


def errors(content: Any, schema: dict[str, Any]) -> list[str]:
    found = Draft202012Validator(schema).iter_errors(content)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


def refuses(key: str, value: Any) -> tuple[bool, bool]:
    """Say whether schema and model refuse params with this value in the place of the key's."""
    name, _, inner = key.partition(".")
    content = copy.deepcopy(PARAMS[name]) if inner else value
    if inner:
        *above, last = inner.split(".")
        place = content
        for part in above:
            place = place[part]
        place[last] = value
    schema = {"$defs": SCHEMA["$defs"], **SCHEMA["properties"][name]}
    try:
        if inner:
            section_model(name).fitting(content).model_validate(content)
        else:
            TopLevel.model_validate({**PARAMS, name: value}, extra="ignore")
    except (ValidationError, ValueError):
        return bool(errors(content, schema)), True
    return bool(errors(content, schema)), False


def wrong_values(node: dict[str, Any]) -> list[Any]:
    """Return values that nothing of this kind may have."""
    out_of_bounds = {"minimum": -1, "exclusiveMinimum": 0, "maximum": 1, "exclusiveMaximum": 0}
    wrong = [node[name] + step for name, step in out_of_bounds.items() if name in node]
    return [*wrong, {"a": "mapping"}, None if node.get("anyOf") is None else ["a list"]]


def test_the_generated_files_are_those_of_now():
    files = make_files(ROOT)
    stale = [str(path) for path, text in files.items() if (ROOT / path).read_text() != text]
    assert stale == [], "`make schema` writes them anew"
    assert len(files) == 3


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        (
            "params.yaml",
            ("# Batches (official: 150000)", ""),
            r"detector\.training\.steps, .*: add a comment",
        ),
        ("experiments/fcos-mo.yaml", ("depth: 20  ", "depth: [20"), "fcos-mo.yaml: not valid YAML"),
    ],
)
def test_a_file_that_explains_nothing_is_told(tmp_path, name, change, told):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    text = (tmp_path / name).read_text()
    assert text.count(change[0]) == 1
    (tmp_path / name).write_text(text.replace(*change))
    with pytest.raises(ValueError, match=told):
        make_files(tmp_path)


def test_params_fit_their_schema():
    Draft202012Validator.check_schema(SCHEMA)
    assert errors(PARAMS, SCHEMA) == []


def test_every_param_says_what_it_is():
    told = {key: node for key, node, _, _ in walk(SCHEMA, PARAMS)}
    assert told["finetune.training.steps"] == told["detector.training.steps"]
    assert told["pseudo_labels.min_area"]["description"].startswith(
        "Smallest pseudo-mask that becomes"
    )
    assert told["pseudo_labels.min_area"]["minimum"] == 1
    allowed = {key: words for key, _, _, words in walk(SCHEMA, PARAMS)}
    assert allowed["detector.training.optimizer.kind"] == "`adamw`, `sgd`"
    assert allowed["pseudo_labels.keep_fraction"] == "number > 0, ≤ 1"
    assert allowed["vlm.pretrained.sha256"] == "string or null"


def mappings(node: Any) -> Iterator[dict[str, Any]]:
    """Yield all mappings in a schema."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    for inner in node if isinstance(node, list) else ():
        yield from mappings(inner)


@pytest.mark.parametrize("schema", [SCHEMA, schema_of(PROFILES[0])], ids=["params", "profile"])
def test_every_key_of_every_architecture_says_what_it_is(schema):
    told = {}
    for node in mappings(schema):
        for key, own in node.get("properties", {}).items():
            model = schema["$defs"].get(own.get("$ref", "").rpartition("/")[2], {})
            told[key, id(own)] = own.get("description", model.get("description"))
    assert len(told) > 400 and [key for (key, _), words in told.items() if not words] == []
    # where a profile's value comes from, does not say what it is
    assert [words for words in told.values() if re.match(r"(ours|code|paper)\b", words)] == []
    head = schema["$defs"]["HourglassParams"]
    assert head["properties"]["depth"]["description"].startswith("3×3 convolutions: 10 | 20")
    momentum = schema["$defs"]["SgdParams"]["properties"]["momentum"]
    assert "{kind: sgd, momentum} (official: 0.9)" in momentum["description"]


def test_no_title_repeats_a_key():
    titles = [node["title"] for node in mappings(SCHEMA) if isinstance(node.get("title"), str)]
    assert titles == []


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_profiles_fit_their_schema_and_make_params_that_fit(path, tmp_path):
    assert errors(plain(path), schema_of(path)) == []
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    apply_profile(tmp_path, path.stem)
    assert errors(plain(tmp_path / "params.yaml"), SCHEMA) == []


def test_schema_and_models_refuse_the_same():
    disagree = []
    for key, node, value, _ in walk(SCHEMA, PARAMS):
        if not isinstance(value, dict):
            for wrong in wrong_values(node):
                if refuses(key, wrong) != (True, True):
                    disagree.append((key, wrong, refuses(key, wrong)))
    for name in PARAMS:
        if isinstance(PARAMS[name], dict):
            assert refuses(f"{name}.unknown_key", 1) == (True, True), name
    assert disagree == []


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        (
            "pseudo_masks.stepz",
            1,
            "pseudo_masks: Additional properties are not allowed ('stepz' was unexpected)",
        ),
        ("pseudo_masks.steps", 0, "pseudo_masks.steps: 0 is less than the minimum of 1"),
        ("evaluation.split", "train", "evaluation.split: 'train' is not one of ['test', 'val']"),
        ("extends", 1, "extends: 1 is not of type 'string'"),
    ],
)
def test_a_wrong_profile_is_refused_by_key(key, value, told):
    (error,) = errors(nest({key: value}), schema_of(PROFILES[0]))
    assert error.startswith(told)


def test_comments_stand_above_and_behind_their_keys(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(
        "# yaml-language-server: $schema=params.schema.json\n"
        "# Of the whole file.\n\n"
        "first: '#1'   # behind\n"
        "# above,\n"
        "# in two lines\n"
        "section:  # of all of it\n"
        "  # deeper\n"
        "  - 1\n"
        "other:\n"
        "  inner: {a: 1, b: 2}   # of both\n"
        "  # above\n"
        "  last: [1, 2]          # and behind\n"
        "  none: 3\n"
    )
    assert read_comments(path) == {
        "first": "behind",
        "section": "above, in two lines of all of it",
        "other.inner": "of both",
        "other.inner.a": "of both",
        "other.inner.b": "of both",
        "other.last": "above and behind",
    }


def test_a_key_has_its_own_comment_and_not_that_of_a_mapping_which_shares_its_model():
    """`finetune.detections` comes before `evaluation.inference` and explains no key of it."""
    told = SCHEMA["$defs"]["InferenceParams"]["properties"]
    assert told["nms_iou"]["description"].startswith("IoU above which the worse of two")
