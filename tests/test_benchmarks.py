"""The benchmarks measure what they say; how fast anything is, no test asserts."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks import bfloat16, laptop
from benchmarks.cost import (
    COCO,
    DATASETS,
    Cost,
    Dataset,
    Profile,
    Sizes,
    detect_operations,
    fetched,
    learn_regions,
    operations_of,
    passes_of,
    train_operations,
)
from benchmarks.flow import Bench, ideal_seconds
from benchmarks.laptop import whole, write_coco
from benchmarks.measure import medians, run, table
from benchmarks.project import (
    dvc,
    make_outputs,
    make_project,
    own_seconds,
    replace_param,
    sole_section,
)
from flows.dvc.plan import make_plan
from flows.graph import Status, overlap
from stages.common.runtime.params import read_params
from stages.models.backbones.imagenet import freeze_stages
from stages.models.detection.hourglass_head import hourglass
from stages.models.detection.params import InferenceParams
from stages.models.proposals.imagenet import ImagenetWspn, ImagenetWspnConfig
from stages.models.proposals.params import ViewSettings
from stages.ranking.params import RankingParams
from tests.support.graph import make_stage
from tests.support.tiny_detector import INFERENCE, WITH_HOURGLASS, tiny_detector
from tests.support.tiny_fcos_mo import tiny_fcos_mo


def test_ideal_time_is_the_longest_chain_if_there_are_cores_enough():
    needs = {"a": "", "b": "a", "c": "a", "d": "b c"}
    graph = {name: make_stage(name, own) for name, own in needs.items()}
    seconds = {"a": 1.0, "b": 2.0, "c": 5.0, "d": 1.0}
    assert ideal_seconds(graph, seconds, 2) == 7.0
    assert ideal_seconds(graph, seconds, 1) == 9.0
    assert ideal_seconds(graph, {"c": 5.0}, 2) == 5.0  # the others did not run
    wide = graph | {"c": make_stage("c", "a", cores=2)}
    assert ideal_seconds(wide, seconds, 2) == 9.0  # c has both cores to itself
    assert ideal_seconds({}, {}, 2) == 0.0


def test_medians_take_turns():
    called = []
    found = medians({"x": lambda: called.append("x"), "y": lambda: called.append("y")}, 3)
    assert called == ["x", "y"] * 3
    assert set(found) == {"x", "y"}


def test_table_is_markdown_without_the_machine_s_name():
    text = table("Numbers", [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}])
    assert text.splitlines()[2:] == ["| a | b |", "|---|---|", "| 1 | 2 |", "| 3 | 4 |"]
    assert text.startswith("Numbers (20")
    assert " CPU cores)" in text


def test_failed_command_is_told(tmp_path):
    with pytest.raises(RuntimeError, match="no such thing"):
        run([sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path)
    spent = run([sys.executable, "-c", "x = bytearray(50 << 20)"], tmp_path)
    assert spent.cpu_seconds > 0 and spent.seconds > 0
    assert spent.peak_mib > 50


def test_trivial_projects_run_and_rerun(tmp_path):
    bench = Bench(tmp_path / "fan", make_project(tmp_path / "fan", "fan", 2))
    assert bench.section == "last"
    bench.run(dvc("repro", "-q"))
    assert set(own_seconds(bench.root)) == {"first", "middle@0", "middle@1", "last"}
    replace_param(bench.root, "last", 7)
    statuses = {step.stage.name: step.status for step in make_plan(bench.root)}
    assert statuses == {
        "first": Status.UP_TO_DATE,
        "middle@0": Status.UP_TO_DATE,
        "middle@1": Status.UP_TO_DATE,
        "last": Status.MUST_RUN,
    }


def test_default_shape_has_every_stage_and_output(tmp_path):
    root = tmp_path / "default"
    graph = make_project(root, "default", 2)
    assert sole_section(graph) == "evaluation"
    made = [path for stage in graph.values() for path in stage.outputs]
    given = {path for stage in graph.values() for path in stage.inputs}
    lacking = [p for p in given if not any(overlap(p, out) for out in made)]
    assert [path for path in lacking if not (root / path).exists()] == []
    make_outputs(root)
    assert [path for path in made if not (root / path).exists()] == []
    assert (root / "data/download/images/train/1.parquet").is_file()
    assert set(own_seconds(root)) == set(graph)
    assert own_seconds(root) == {}
    replace_param(root, "evaluation", 7)  # to what the flow's own check lets through
    subprocess.run([sys.executable, "-m", "stages.preflight", "evaluation"], cwd=root, check=True)


def test_a_stage_benchmark_prints_its_table(repository):
    command = [sys.executable, "-m", "benchmarks.stages", "pseudo_boxes", "--repeats", "1"]
    output = subprocess.check_output(command, cwd=repository, text=True)
    assert "| pseudo_boxes | objects, 2,000 proposals |" in output


def test_cost_spreads_over_gpus_and_takes_the_longer_of_cores_and_gpu():
    an_hour_of_gpu = Cost("activation", 3600, core_seconds=8.0, operations=60e12)
    assert an_hour_of_gpu.gpu_hours(60) == 1.0
    assert [an_hour_of_gpu.hours(n, 16, 60) for n in (1, 8)] == [1.0, 0.125]
    assert an_hour_of_gpu.hours(1, 4, 60) == 2.0  # the cores take longer
    training = replace(an_hour_of_gpu, parts=8)
    assert [training.hours(n, 16, 60) for n in (1, 8, 64)] == [1.0, 0.125, 0.125]
    assert replace(an_hour_of_gpu, parts=1).hours(8, 16, 60) == 1.0


def test_cost_divides_a_training_as_the_stages_do():
    profile = Profile(COCO, Sizes(1.0, 1.0, 1.0, 1.0, 1.0, 128))
    wspn, _ = profile.proposal_network()
    assert (wspn.stage, wspn.parts) == ("wspn", 8)  # a batch of 8 on 8 GPUs
    assert [profile.processes(count) for count in (64, 8, 4)] == [8, 8, 4]


@pytest.mark.parametrize("dataset", DATASETS, ids=lambda dataset: dataset.profile)
def test_cost_of_measuring_is_that_of_every_training_image(dataset):
    cost = Profile(dataset, Sizes(1.0, 1.0, 1.0, 1.0, 1.0, 128)).quality()
    assert (cost.stage, cost.items, cost.operations) == ("label_quality", dataset.train, 0)
    assert 0.001 < cost.core_seconds < 5


@pytest.mark.parametrize(
    ("scored", "refinements", "keep", "score", "passes"),
    [
        ("box", 1, False, "classes", 2),
        ("proposal", 1, False, "classes", 1),
        ("proposal", 2, True, "quality", 2),
        ("box", 3, True, "quality", 4),
    ],
)
def test_cost_of_ranking_is_that_of_its_looks_at_the_regions(
    scored, refinements, keep, score, passes
):
    ranking = RankingParams(
        top_k=5,
        score=score,
        agreement={"neighbour_iou": 1.0, "power": 1.0},
        scored=scored,
        refinements=refinements,
        keep_proposals=keep,
        nms_iou=[0.5],
        views=ViewSettings(shorter_sides=[64], longer_side=96, flip=False),
    )
    assert passes_of(ranking) == passes


TINY = {
    "mask_rcnn": tiny_detector,
    "mask_rcnn, hourglass": partial(tiny_detector, **WITH_HOURGLASS),
    "fcos_mo": tiny_fcos_mo,
}


@pytest.mark.parametrize("tiny", TINY.values(), ids=TINY)
def test_cost_of_detecting_is_that_of_all_detections_of_all_vocabularies(tiny, monkeypatch):
    # Else masks cost what their boxes are large.
    monkeypatch.setattr("stages.models.detection.paste_masks.SMALLEST_WINDOW", 10**6)
    architecture, network = tiny().architecture, tiny().params
    few, more = (
        InferenceParams.model_validate(INFERENCE | {"detections_per_image": k}) for k in (2, 4)
    )
    few, more, thrice = (
        detect_operations(architecture, network, inference, 3, vocabularies)
        for inference, vocabularies in ((few, 1), (more, 1), (more, 3))
    )
    assert few < more < thrice
    assert thrice - more == pytest.approx(4 * (more - few), rel=0.1)


def test_cost_of_training_counts_the_convolutions_of_an_hourglass():
    def of(depth: int) -> float:
        head = WITH_HOURGLASS["mask_head"] | {"depth": depth}
        network = tiny_detector(mask_head=head).params
        return train_operations("mask_rcnn", network, 2)

    def alone(depth: int) -> float:
        network = hourglass(depth, 8 + 2 + 8, 8)
        crop = torch.rand(1, 18, 16, 16, requires_grad=True)
        return operations_of(lambda: network(crop).sum().backward())

    assert of(20) - of(10) == pytest.approx(alone(20) - alone(10), rel=1e-6)


def test_cost_of_learning_counts_neither_frozen_stages_nor_what_is_not_computed_again():
    def learn(frozen: int, at_once: int) -> float:
        with torch.device("meta"):
            model = ImagenetWspn(ImagenetWspnConfig("vgg16", [1, 2], 3, 0.5, at_once))
        freeze_stages(model.trunk, frozen)
        return learn_regions(model, torch.empty(1, 3, 512, 512, device="meta"), 64)

    regions = 2 * 64 * (25088 * 4096 + 4096**2)
    assert learn(2, 8) - learn(2, 64) == pytest.approx(regions, rel=0.01)
    assert learn(0, 64) > learn(2, 64)


def test_each_worker_fetches_what_its_stage_reads():
    dataset = Dataset("test", "smoke", 100, 10, (2, 1), captions=1, objects=1.0, bytes=1000.0)
    costs = [Cost(name, 1) for name in ("proposals", "pseudo_boxes", "pseudo_masks", "evaluation")]
    found = fetched([*costs, Cost("activation", 10, written=5.0)], dataset)
    assert found["proposals"] == 100_000
    assert found["pseudo_boxes"] == 100_000 + 50
    assert found["evaluation"] == 110_000


def test_photographs_are_taken_again_until_there_are_enough(tmp_path):
    source = tmp_path / "few"
    (source / "val2017").mkdir(parents=True)
    (source / "val2017/a.jpg").write_bytes(b"image")
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "missing.jpg"}]
    contents = {
        "instances": [{"id": 1, "image_id": 7, "category_id": 3}, {"id": 2, "image_id": 8}],
        "captions": [{"id": 5, "image_id": 7, "caption": "a cup"}] * 2,
    }
    (source / "annotations").mkdir()
    for kind, entries in contents.items():
        content = {"images": images, "annotations": entries, "categories": ["cup"]}
        (source / f"annotations/{kind}_val2017.json").write_text(json.dumps(content))
    captions = json.loads(write_coco(source, tmp_path / "coco", 3).read_text())["annotations"]
    instances = json.loads((tmp_path / "coco/annotations/instances_val2017.json").read_text())
    ids = [image["id"] for image in instances["images"]]
    assert len(set(ids)) == 3 and len({image_id // 1000 % 2 for image_id in ids}) == 2
    files = [tmp_path / "coco/val2017" / image["file_name"] for image in instances["images"]]
    assert len({path.read_bytes() for path in files}) == 3
    assert all(path.read_bytes().startswith(b"image") for path in files)
    assert [entry["image_id"] for entry in instances["annotations"]] == ids
    assert [entry["image_id"] for entry in captions] == [k for k in ids for _ in range(2)]
    assert len({entry["id"] for entry in captions}) == 6
    (source / "val2017/a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="few: no photograph"):
        write_coco(source, tmp_path / "none", 3)


def test_what_all_of_a_profile_takes_is_on_the_line_through_two_parts():
    assert whole({0.1: 30.0, 0.2: 40.0}) == pytest.approx(120.0)  # 20 to start with
    assert whole({1.0: 7.0}) == 7.0
    assert whole({0.1: 5.0, 0.2: 4.0}) == 4.0  # does not grow, but for noise


@pytest.mark.parametrize(("part", "images", "steps"), [(0.1, 30, 15), (1, 300, 150)])
def test_a_part_of_the_laptop_s_profile_has_its_part_of_images_and_steps(
    tmp_path, part, images, steps
):
    laptop.make_project(tmp_path / "project", part)
    params = read_params(tmp_path / "project/params.yaml")
    assert params["download"]["coco"]["max_images"]["train"] == images
    assert params["wspn"]["end_to_end"]["steps"] == steps


def test_bfloat16_is_compared_with_float32():
    assert bfloat16.ratio(pairs=1) > 0
