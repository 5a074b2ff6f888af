"""dvc.yaml is true to the code, and the code to the house rules: what makes caching right."""

import ast
import re
import shutil
from functools import reduce
from operator import getitem
from pathlib import Path

import grimp
import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports
from ruamel.yaml import YAML

from claims.readme import pages, place, reruns, reruns_table
from flows.dvc.project import load_graph, locked_repo, read_graph
from flows.graph import MODELS, USED, DagError, Graph, overlap
from flows.overlay import apply_overlay
from stages.detector.params import ANNOTATIONS, TRUTH
from stages.guard import find_declared
from tests.support.closure import (
    DVC_FILES,
    LOCK,
    check_deps,
    import_closures,
    params_read,
    read_stages,
    stage_module,
)
from tests.support.graph import inputs_through

ROOT = Path(__file__).parents[1]
GROUND_TRUTH = "data/download/ground_truth"
ANNOTATED_CLASSES = "data/download/annotations"  # of base classes, without where they are
# Up to the training on pseudo-labels nothing may see a box or mask that a person drew.
BLIND = (
    "vlm vocabulary proposals wspn ranking activation"
    " pseudo_boxes pseudo_masks pseudo_labels phrases phrase_labels supervision detector"
).split()
# It names ground truth among the sources that params.yaml may choose, and reads no file.
NAMES_OF_SOURCES = "stages/detector/params.py"
ARCHITECTURE_DEP = re.compile(r"stages/models/architectures/\$\{(detector|rpn)\.architecture\}")
NO_SECTION = {"seed", "shards", "deterministic", "gpus_per_training"}
NO_STAGE = {"common", "models"}


@pytest.fixture(scope="module")
def content() -> dict:
    return YAML(typ="safe").load(ROOT / "dvc.yaml")


@pytest.fixture(scope="module")
def graph() -> Graph:
    return load_graph(ROOT)


@pytest.fixture(scope="module")
def stages() -> dict[str, dict]:
    """Give the stages of the experiment and those of the comparators."""
    return {name: stage for file in DVC_FILES for name, stage in read_stages(ROOT / file).items()}


@pytest.fixture(scope="module")
def closures(stages) -> dict[str, list[str]]:
    """Give the source files of each stage."""
    modules = {name: stage_module(stage) for name, stage in stages.items()}
    files = import_closures(ROOT, sorted(set(modules.values())))
    return {name: files[module] for name, module in modules.items()}


@pytest.mark.parametrize(("file", "most"), [("dvc.yaml", 400), ("comparators/dvc.yaml", 250)])
def test_a_graph_can_be_read_at_a_sitting(file, most):
    assert len((ROOT / file).read_text(encoding="utf-8").splitlines()) <= most


def test_deps_are_data_and_folders_that_hold_the_import_closure():
    assert check_deps(ROOT) == []


def test_both_files_have_stages_of_other_names(stages):
    assert len(stages) == sum(len(read_stages(ROOT / file)) for file in DVC_FILES)


def test_who_makes_or_loads_a_detector_depends_on_the_chosen_architecture(stages, closures):
    """Its package is imported by name, which no import graph sees."""
    detector = "stages/models/detection/detector.py"
    users = {name for name, files in closures.items() if detector in files}
    declared = {
        name for name in stages if any(map(ARCHITECTURE_DEP.fullmatch, stages[name]["deps"]))
    }
    assert declared == users >= {"detector", "finetune", "evaluation", "trained", "rpn"}


def test_whoever_computes_on_a_device_asks_for_one(stages, closures):
    for name, stage in stages.items():
        computes = "stages/common/runtime/devices.py" in closures[name]
        assert (stage["meta"]["pool"] == "gpu") == ("gpus" in stage["meta"]) == computes, name


def test_trainings_ask_for_as_many_devices_as_params_say(graph, content):
    for name in ("wspn", "detector", "finetune"):
        assert content["stages"][name]["meta"]["gpus"] == "${gpus_per_training}"
        assert graph[name].gpus == 1


def test_deps_are_data_sources_and_the_lock_of_the_packages(graph):
    for stage in graph.values():
        odd = [path for path in stage.inputs if not path.startswith(("data/", "stages/"))]
        assert odd == [LOCK], stage.name


def test_params_are_the_sections_that_the_code_reads(stages, closures):
    declared = {name: set(stage.get("params", [])) for name, stage in stages.items()}
    assert declared == {name: params_read(ROOT, files) for name, files in closures.items()}


def test_whoever_reads_held_out_images_follows_the_split_that_is_measured(stages):
    for name, stage in stages.items():
        fixed = [dep for dep in stage["deps"] if re.search(r"\b(test|val)\.(parquet|json)$", dep)]
        assert fixed == [], name


def test_every_data_input_is_made_by_a_stage(graph):
    outputs = [path for stage in graph.values() for path in stage.outputs]
    orphans = {
        (name, path)
        for name, stage in graph.items()
        for path in stage.inputs
        if path.startswith("data/") and not any(overlap(path, output) for output in outputs)
    }
    assert orphans == set()


def packages(folder: str) -> set[str]:
    return {path.parent.name for path in (ROOT / folder).glob("*/__init__.py")}


def test_one_name_in_five_places(content):
    comparators = read_stages(ROOT / "comparators/dvc.yaml")
    sections = set(YAML(typ="safe").load(ROOT / "params.yaml")) - NO_SECTION
    assert packages("stages") - NO_STAGE == set(content["stages"])
    assert packages("comparators") <= set(comparators)
    assert sections == {path.parent.name for path in ROOT.glob("*/*/params.py")}
    for folder in ("stages", "comparators"):
        assert packages(folder) - NO_STAGE <= packages(f"tests/{folder}")
    for name in packages("comparators"):
        assert comparators[name]["cmd"].startswith(f"python -m comparators {name}"), name
    for name, stage in content["stages"].items():
        module = f"python -m stages {name}"
        assert stage["cmd"].split()[:4] == module.split(), name
        outputs = [
            path if isinstance(path, str) else next(iter(path))
            for kind in ("outs", "metrics", "plots")
            for path in stage.get(kind, [])
        ]
        assert outputs, name
        assert {"/".join(path.split("/")[:2]) for path in outputs} == {f"data/{name}"}


def test_stages_say_what_they_are_and_how_many_cores_they_keep_busy(content):
    for name, stage in content["stages"].items():
        assert stage["desc"], name
        assert stage["meta"]["cores"] >= 1, name
        assert stage["meta"].get("pool", "cpu") in ("cpu", "gpu"), name


def test_nothing_turns_the_run_cache_off(content):
    for name, stage in content["stages"].items():
        assert not stage.get("always_changed"), name
        options = [
            option
            for kind in ("outs", "metrics", "plots")
            for path in stage.get(kind, [])
            if isinstance(path, dict)
            for option in next(iter(path.values())).items()
        ]
        assert ("cache", False) not in options, name
        assert ("persist", True) not in options, name


def test_empty_init_files():
    full = [
        path.relative_to(ROOT).as_posix()
        for folder in ("claims", "comparators", "fetch", "flows", "predict", "stages")
        for path in (ROOT / folder).rglob("__init__.py")
        if path.read_text().strip()
    ]
    assert full == []


def test_layers_of_imports(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    code = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert code == EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_what_tests_share_lies_in_no_test_module():
    graph = grimp.build_graph("tests", cache_dir=None)
    modules = [name for name in graph.modules if re.search(r"\.(test_\w+|conftest)$", name)]
    users = {name: graph.find_modules_that_directly_import(name) for name in modules}
    assert {name: own for name, own in users.items() if own} == {}


def test_no_stage_up_to_the_detector_reads_ground_truth(graph):
    blind = [name for name, stage in graph.items() if stage.group in BLIND]
    assert {graph[name].group for name in blind} == set(BLIND)
    seen = {
        (name, path)
        for name in blind
        for path in inputs_through(graph, name, "download")
        if overlap(path, GROUND_TRUTH) or overlap(path, ANNOTATED_CLASSES)
    }
    assert seen == set()


@pytest.fixture
def copied(tmp_path):
    """Return a folder with the DAG, its params and the code of the stages, to be changed."""
    for name in ("dvc.yaml", "params.yaml", "comparators/dvc.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "stages").symlink_to(ROOT / "stages")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n", encoding="utf-8")
    return tmp_path


def test_what_guards_a_stage_compares_all_that_dvc_hashes(copied, monkeypatch):
    with locked_repo(copied) as repo:
        graph, _ = read_graph(repo, copied)  # with the comparators
    assert {"evaluation", "comparators/dvc.yaml:rpn"} <= graph.keys()
    monkeypatch.chdir(copied)
    monkeypatch.setattr("os.path.exists", lambda path: True)  # data need not be there
    for name, stage in graph.items():
        declared = find_declared(name)
        assert sorted(declared.paths) == sorted(stage.inputs), name
        assert sorted(declared.keys) == sorted(stage.params), name


def test_if_asked_the_proposal_network_alone_reads_which_base_classes_people_saw(copied):
    apply_overlay(copied / "params.yaml", {"wspn": {"image_labels": "annotations"}}, "test")
    graph = load_graph(copied)
    for path, readers in ((ANNOTATED_CLASSES, {"wspn"}), (GROUND_TRUTH, set())):
        blind = {stage.group for stage in graph.values() if stage.group in BLIND}
        found = {
            stage.group
            for stage in graph.values()
            if stage.group in blind and any(overlap(inner, path) for inner in stage.inputs)
        }
        assert found == readers


@pytest.mark.parametrize("source", ANNOTATIONS)
def test_ground_truth_reaches_the_detector_through_the_sources_that_are_of_it(copied, source):
    annotations, (*_, classes) = ANNOTATIONS[source]
    sources = [{"name": source, "annotations": annotations, "classes": classes}]
    changes = {"detector": {"supervision": {"sources": sources}}}
    apply_overlay(copied / "params.yaml", changes, "test")
    graph = load_graph(copied)
    seen = inputs_through(graph, "detector", "download")
    assert any(overlap(path, GROUND_TRUTH) for path in seen) == (annotations == TRUTH)
    # and nothing is made that it does not learn from
    assert ("data/pseudo_masks" in seen) == (source == "pseudo_masks")
    assert ("data/download/narratives" in seen) == (source == "phrases")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("detector.supervision.sources", 3, r"detector\.supervision\.sources: .*, found 3"),
        ("detector.supervision.sources", [3], r"detector\.supervision\.sources\.0: .*, found 3"),
        ("detector", None, r"detector\.architecture: expected one of .*, found None"),
        ("wspn", {}, r"wspn\.\w+: Field required"),
        ("evaluation.split", ["test"], r"evaluation\.split: .*, found \['test'\]"),
        ("gpus_per_training", 0, "gpus_per_training: expected a whole number >= 1, found 0"),
        ("gpus_per_training", "two", "gpus_per_training: expected .*, found 'two'"),
    ],
)
def test_values_that_templates_cannot_take_are_told_by_their_keys(copied, key, value, message):
    yaml = YAML()
    params = yaml.load(copied / "params.yaml")
    *sections, last = key.split(".")
    reduce(getitem, sections, params)[last] = value
    yaml.dump(params, copied / "params.yaml")
    with pytest.raises(DagError, match=rf"\Aparams\.yaml: {message}"):
        load_graph(copied)


def test_the_code_of_those_stages_does_not_name_it(closures):
    """A path that is read without being declared would show as a string in the source."""
    named = {
        (name, file)
        for name in BLIND
        for file in closures[name]
        if file != NAMES_OF_SOURCES
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and "ground_truth" in node.value
    }
    assert named == set()


def test_ground_truth_is_read_where_it_may_be(graph):
    """The graph does show who reads it, so the tests above can fail."""
    readers = {
        stage.group
        for stage in graph.values()
        if any(overlap(path, GROUND_TRUTH) for path in stage.inputs)
    }
    assert readers.isdisjoint(BLIND)
    assert {"label_quality", "finetune", "evaluation"} <= readers


def test_the_docs_say_which_stages_a_param_reruns(graph):
    texts = [path.read_text(encoding="utf-8") for path in pages(ROOT)]
    (table,) = [found[2] for text in texts for found in place("reruns").finditer(text)]
    everything = list(dict.fromkeys(stage.group for stage in graph.values()))
    told = {}
    for line in table.strip().splitlines()[2:]:
        param, stages = (cell.strip() for cell in line.strip("|").split("|")[:2])
        names = everything if stages == "all" else re.findall(r"\w+", stages)
        told[param.strip("`")] = sorted(names)
    assert told == {param: sorted(reruns(graph, param)) for param in told}
    keys = {key for stage in graph.values() for key in stage.params}
    assert keys <= set(told), f"`make readme` writes it:\n{reruns_table(graph)}"


def test_what_workers_make_comes_here_as_far_as_it_is_shown_or_used(content, graph):
    brought = {path for stage in graph.values() for path in stage.brought}
    assert brought >= USED
    curves = [path for plot in content["plots"] for own in plot.values() for path in own["y"]]
    assert set(curves) <= brought
    heavy = {".parquet", ".safetensors"}
    assert {path for path in brought - USED if Path(path).suffix in heavy | {""}} == set()


def test_each_model_of_the_experiment_is_an_artifact(content, graph):
    """As `dvc artifacts get` and a model registry find it; comparators have none."""
    made = {path for stage in graph.values() if ":" not in stage.name for path in stage.outputs}
    artifacts = content["artifacts"]
    assert {name: own["path"] for name, own in artifacts.items()} == {
        name: f"data/{name}/model.safetensors" for name in ("vlm", "wspn", *MODELS)
    }
    assert {own["path"] for own in artifacts.values()} == {
        path for path in made if path.endswith("/model.safetensors")
    }
    assert all(own["type"] == "model" and own["desc"] for own in artifacts.values())


def test_a_change_of_inference_trains_nothing(stages):
    """Whoever tries another threshold waits for an evaluation, not for a detector."""
    readers = {
        name
        for name, stage in stages.items()
        if any("evaluation.inference.".startswith(f"{key}.") for key in stage.get("params", []))
    }
    assert readers == {"evaluation", "comparators_evaluation", "wsddn_evaluation"}
