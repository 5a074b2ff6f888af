"""Every profile fits params.yaml, and every section of the result its model."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows.overlay import apply_profile, read_params, read_profile
from flows.plan import load_graph
from stages.common.params import read_section
from stages.preflight import section_model

ROOT = Path(__file__).parents[1]
PROFILES = sorted(path.stem for path in (ROOT / "experiments").glob("*.yaml"))
PAPER_PROFILES = ("paper-coco", "paper-coco-blip", "paper-open-images", "folder-albef")


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted keys of all that is no mapping."""
    if not isinstance(value, dict):
        yield path
        return
    for key, inner in value.items():
        yield from leaves(inner, f"{path}.{key}" if path else key)


def applied(profile: str, folder: Path) -> Path:
    """Return a params.yaml in the folder, with the profile merged into it."""
    shutil.copy(ROOT / "params.yaml", folder)
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    assert apply_profile(folder, profile)
    return folder / "params.yaml"


def not_counting(params: dict) -> Iterator[str]:
    """Yield the keys that other values switch off, as params.yaml says of each."""
    sources = {key for key, value in params["download"].items() if isinstance(value, dict)}
    yield from (f"download.{name}" for name in sources - {params["download"]["source"]})
    if params["vlm"]["source"] != "train":
        yield from (f"vlm.{key}" for key in params["vlm"].keys() - {"source", "pretrained"})
    if params["vocabulary"]["encoder"] == "clip":
        yield "vocabulary.pooling"
    if params["wspn"]["model"]["backbone"]["kind"] != "vlm":
        yield from (f"wspn.model.{key}" for key in ("image_side", "class_hidden", "object_hidden"))
        yield "wspn.classify"
        for key in ("epochs", "batch_size", "learning_rate", "weight_decay"):
            yield f"wspn.localise.{key}"
    if params["masks"]["method"] != "threshold":
        yield "masks.threshold"
    if params["finetune"]["unlabelled"] == "background":
        yield "finetune.detection_score"
    if params["evaluation"]["metric"] == "coco":
        yield "evaluation.expand_detections"


def inherited(profile: str, folder: Path) -> list[str]:
    """Return the keys that count in the DAG and that the profile leaves to params.yaml."""
    params = read_params(applied(profile, folder).parent)
    used = {key.partition(".")[0] for stage in load_graph(ROOT).values() for key in stage.params}
    counting = leaves({name: params[name] for name in used})
    chosen, off = set(leaves(read_profile(ROOT, profile))), tuple(not_counting(params))
    return sorted(
        key
        for key in counting
        if key not in chosen and not any(f"{key}.".startswith(f"{switch}.") for switch in off)
    )


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_fit(profile, tmp_path):
    path = applied(profile, tmp_path)
    for name, value in YAML(typ="safe").load(path).items():
        if isinstance(value, dict):
            read_section(name, section_model(name), path)


def test_your_own_pictures_are_seen_at_one_size(tmp_path):
    params = read_params(applied("folder", tmp_path).parent)
    assert params["vlm"]["image_size"] == params["activation"]["image_size"]


@pytest.mark.parametrize("profile", PAPER_PROFILES)
def test_the_paper_profiles_inherit_no_value_that_counts(profile, tmp_path):
    assert inherited(profile, tmp_path) == []


def test_what_a_profile_inherits_is_found(tmp_path):
    found = inherited("smoke", tmp_path)
    assert {"seed", "proposals.min_side", "detector.network.classifier.similarity"} <= set(found)
    assert not {"shards", "masks.steps", "masks.threshold", "download.coco.folder"} & set(found)


@pytest.mark.parametrize("profile", PAPER_PROFILES)
def test_the_paper_profiles_say_where_every_value_comes_from(profile):
    text = (ROOT / f"experiments/{profile}.yaml").read_text()
    unfolded = re.sub(r"([\[,])\n\s+", r"\1 ", text)  # a list over several lines
    values = [line for line in unfolded.splitlines() if re.match(r"\s*\w+: [^#]", line)]
    assert len(values) > 5
    told = [line for line in values if not line.startswith("extends:")]
    assert [line for line in told if not re.search(r"# (paper|code|ours)\b", line)] == []
