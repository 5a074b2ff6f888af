"""Every profile fits params.yaml, and every section of the result its model."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows.dvc.project import load_graph
from flows.overlay import (
    PARAMS,
    apply_overlay,
    apply_profile,
    extend,
    flatten,
    nest,
    read_params,
    read_profile,
)
from flows.sweeps.points import make_points
from stages.common.runtime.params import read_section
from stages.preflight import section_model

ROOT = Path(__file__).parents[1]
PROFILES = sorted(path.stem for path in (ROOT / "experiments").glob("*.yaml"))
PAPER_PROFILES = (
    "paper-alp",
    "paper-coco",
    "paper-coco-blip",
    "paper-coco-code",
    "paper-coco-fast",
    "paper-open-images",
    "folder-albef",
)
SOURCES = ROOT / "tests/reference/sources.yaml"
# Where a profile is about other data or another model, its source says other than for paper-coco.
SOURCES_OF = {
    "paper-alp": {
        "download.source": "open_images",
        "wspn.end_to_end.image_weight": 0.005,
        "download.open_images.division": "coco",
        "download.open_images.test_part": "test",
        "download.open_images.narratives": True,
        "detector.architecture": "fcos_mo",
        "detector.supervision.draw": "in_turn",
    },
    "folder-albef": {"wspn.end_to_end.image_weight": 0.05},
    "paper-open-images": {
        "download.source": "open_images",
        "wspn.end_to_end.image_weight": 0.005,
    },
}
# Our own choices that equal those for the small scenes, and why none of them was tuned there.
OURS_AS_FOR_THE_SCENES = {
    "seed": "any",
    "download.max_leaked_fraction": "a guard, changes no result",
    "download.max_missing_class_fraction": "a guard, changes no result",
    "download.coco.folder": "a path",
    "download.open_images.folder": "a path",
    "download.open_images.test_part": "which images to test on",
    "download.open_images.division": "as near as is known to the paper's classes",
    "download.coco.narratives": "the method has no pointer",
    "download.open_images.narratives": "the method has no pointer",
    "download.open_images.max_images.train": "all",
    "download.open_images.max_images.val": "all",
    "download.open_images.max_images.test": "all",
    "download.folder.path": "a path",
    "vlm.pretrained.sha256": "not checked",
    "vlm.pretrained.max_tokens": "near the code's 30 words",
    "vocabulary.max_unknown_fraction": "a guard, changes no result",
    "wspn.image_labels": "images without annotations have nothing else",
    "wspn.model.backbone.sha256": "not checked",
    "wspn.model.backbone.regions_at_once": "memory, changes no result",
    "activation.captions": "as the papers' eq. 1-3 say nothing of one caption, none is left out",
    "activation.forms": "whoever writes of cats names the class cat",
    "activation.union": "the code adds its maps, too; any above 0 is on, for they are binary",
    "activation.batch_size": "memory, changes no result",
    "pseudo_masks.batch_size": "memory, changes no result",
    "pseudo_labels.min_labelled_fraction": "a guard, changes no result",
    **dict.fromkeys(
        (
            "phrases.parser",
            "phrases.spacy_model",
            "phrases.window.before",
            "phrases.window.after",
            "phrases.box.trim_fraction",
            "phrases.box.min_points",
            "phrases.box.min_side",
            "phrases.box.max_area",
            "phrase_labels.several",
            "phrase_labels.montage_rows",
        ),
        "ours; trim_fraction after a look at the IoU of boxes on 250 training scenes",
    ),
    "label_quality.recall_at": "what is measured",
    "label_quality.activation_thresholds": "what is measured",
    "label_quality.activation_fractions": "what is measured",
    "label_quality.square_sides": "what is measured",
    "label_quality.montage_rows": "what is shown",
    "detector.architecture": "whose library is always installed",
    "detector.region_head": "the method has no other",
    "detector.supervision.draw": "of a single source it makes no difference",
    "detector.supervision.sources": "the method's labels, which all count alike",
    "detector.network.classifier.similarity": "CLIP's vectors are compared so",
    "detector.training.region_losses": "the method has none",
    "detector.training.bias_rate_factor": "as detectron2's default has it",
    **dict.fromkeys(
        (
            f"{stage}.training.loss_weights.{loss}"
            for stage in ("detector", "finetune")
            for loss in ("classification", "mask")
        ),
        "no weights, as in FCOS and Deep-MAC",
    ),
    "finetune.supervision.draw": "of a single source it makes no difference",
    "finetune.supervision.sources": "the method's labels, which all count alike",
    "finetune.training.region_losses": "the method has none",
    "detector.training.precision": "speed: rounding, a known-good choice for detectors",
    "finetune.training.precision": "speed: rounding, a known-good choice for detectors",
    "evaluation.expand_detections": "the challenge's usual submission",
    "evaluation.montage_images": "what is shown",
    "evaluation.montage_min_score": "what is shown",
    "shards": "how the work is divided",
    "gpus_per_training": "how the work is divided",
}


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
    if params["download"]["coco"]["train_part"] != "val2017":
        yield "download.coco.test_fraction"
    if params["vlm"]["source"] != "train":
        yield from (f"vlm.{key}" for key in params["vlm"].keys() - {"source", "pretrained"})
    if params["vocabulary"]["encoder"] == "clip":
        yield "vocabulary.pooling"
    if params["wspn"]["model"]["backbone"]["kind"] != "vlm":
        yield from (f"wspn.model.{key}" for key in ("image_side", "class_hidden", "object_hidden"))
        yield "wspn.classify"
        for key in ("epochs", "batch_size", "learning_rate", "weight_decay"):
            yield f"wspn.localise.{key}"
    if params["pseudo_masks"]["method"] != "threshold":
        yield "pseudo_masks.threshold"
    if params["finetune"]["unlabelled"] == "background":
        yield "finetune.detections"
    if params["detector"]["architecture"] == "fcos_mo":
        yield "evaluation.inference.post_nms_top_n"
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


def value_at(params: dict, key: str) -> Any:
    """Return the value of a dotted key."""
    for part in key.split("."):
        params = params[part]
    return params


def sources(profile: str) -> dict[str, str]:
    """Return paper, code or ours of each key that a profile sets, or else what it extends does."""
    text = (ROOT / f"experiments/{profile}.yaml").read_text()
    text = re.sub(r"([\[,])\n\s+", r"\1 ", text)  # a list over several lines
    content = YAML().load(text)
    extended = content.pop("extends", None)
    lines = text.splitlines()
    found = sources(extended) if extended else {}
    for key in leaves(content):
        *above, last = key.split(".")
        section = value_at(content, ".".join(above)) if above else content
        line = lines[section.lc.key(last)[0]]
        told = re.search(r"# (paper|code|ours)\b", line)
        assert told, f"{profile}: {key}: paper, code or ours?"
        found[key] = told[1]
    there = set(leaves(read_profile(ROOT, profile)))  # a mapping may have been replaced whole
    return {key: source for key, source in found.items() if key in there}


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_fit(profile, tmp_path):
    check_sections(applied(profile, tmp_path))


def check_sections(path: Path) -> None:
    for name, value in YAML(typ="safe").load(path).items():
        if isinstance(value, dict):
            read_section(name, section_model(name), path)


@pytest.mark.parametrize("file", sorted((ROOT / "experiments/sweeps").glob("*.yaml")))
def test_points_of_shipped_sweeps_have_names_and_fit(file, tmp_path):
    points = make_points(ROOT, ["seed=0"], file)
    assert len({point.label["name"] for point in points}) == len(points)
    alone, together = tmp_path / "alone.yaml", tmp_path / "together.yaml"
    for point, overlay in zip(points, YAML().load(file), strict=True):
        name = overlay.pop("name")
        assert point.label["name"] == name
        shutil.copy(ROOT / PARAMS, together)
        apply_overlay(together, nest(point.values), name)
        check_sections(together)
        shutil.copy(ROOT / PARAMS, alone)  # what it is beside no other point
        apply_overlay(alone, extend(ROOT, nest(dict(flatten(overlay, ".")))), name)
        assert YAML(typ="safe").load(together) == YAML(typ="safe").load(alone) | {"seed": 0}


def test_your_own_images_are_seen_at_one_size(tmp_path):
    params = read_params(applied("folder", tmp_path).parent)
    assert params["vlm"]["image_size"] == params["activation"]["image_size"]


@pytest.mark.parametrize("profile", PAPER_PROFILES)
def test_the_paper_profiles_inherit_no_value_that_counts(profile, tmp_path):
    assert inherited(profile, tmp_path) == []


def test_what_a_profile_inherits_is_found(tmp_path):
    found = inherited("smoke", tmp_path)
    assert {"seed", "proposals.min_side", "detector.network.classifier.similarity"} <= set(found)
    assert not {
        "shards",
        "pseudo_masks.steps",
        "pseudo_masks.threshold",
        "download.coco.folder",
    } & set(found)


def not_as_their_sources(profile: str, params: dict) -> dict[str, Any]:
    """Return what a profile claims to have from paper or code, and they do not say."""
    told = YAML(typ="safe").load(SOURCES)
    said = {
        (source, key): value_at(content, key)
        for source, content in told.items()
        for key in leaves(content)
    }
    own = SOURCES_OF.get(profile, {})
    return {
        key: value_at(params, key)
        for key, source in sources(profile).items()
        if source != "ours"
        and value_at(params, key) != own.get(key, said.get((source, key), "nothing"))
    }


def leaked(profile: str, params: dict) -> list[str]:
    """Return our own choices that are equal to those for the scenes, without a known reason."""
    scenes = read_params(ROOT)
    return [
        key
        for key, source in sources(profile).items()
        if source == "ours"
        and key not in OURS_AS_FOR_THE_SCENES
        and key in set(leaves(scenes))
        and value_at(params, key) == value_at(scenes, key)
    ]


@pytest.mark.parametrize("profile", PAPER_PROFILES)
def test_the_paper_profiles_have_the_values_of_their_sources(profile):
    assert not_as_their_sources(profile, read_profile(ROOT, profile)) == {}


@pytest.mark.parametrize("profile", PAPER_PROFILES)
def test_no_value_for_the_scenes_leaks_into_the_paper_profiles(profile):
    assert leaked(profile, read_profile(ROOT, profile)) == []


def test_a_wrong_source_and_a_leak_are_found():
    params = read_profile(ROOT, "paper-coco")
    params["pseudo_masks"] |= {"channels": 8, "learning_rate": 0.03}
    assert not_as_their_sources("paper-coco", params) == {"pseudo_masks.channels": 8}
    assert leaked("paper-coco", params) == ["pseudo_masks.learning_rate"]


def test_sources_tell_nothing_that_no_profile_takes():
    taken = {(source, key) for name in PAPER_PROFILES for key, source in sources(name).items()}
    told = YAML(typ="safe").load(SOURCES)
    assert {(s, key) for s, content in told.items() for key in leaves(content)} - taken == set()


def test_object_and_background_have_seeds_alike_and_few(tmp_path):
    """The paper has one Z for both; where it is large, seeds of the object lie beside it."""
    seeds = read_params(applied("paper-coco", tmp_path).parent)["pseudo_masks"]["seeds"]
    assert seeds["foreground_fraction"] == seeds["background_fraction"] <= 0.2


def test_the_code_s_profile_has_every_switch_the_code_s_way():
    """docs/params.md's table of where the paper and its official code differ."""
    paper, code = (read_profile(ROOT, name) for name in ("paper-coco", "paper-coco-code"))
    told = YAML(typ="safe").load(SOURCES)
    both = set(leaves(told["paper"])) & set(leaves(told["code"]))
    assert both >= {
        "activation.mask_scope",
        "pseudo_boxes.activation_round",
        "pseudo_boxes.binarise",
        "pseudo_masks.seeds.foreground",
        "pseudo_masks.seeds.background",
        "pseudo_masks.self_training",
    }
    for key in both:
        assert value_at(paper, key) == value_at(told["paper"], key)
        assert value_at(code, key) == value_at(told["code"], key)
