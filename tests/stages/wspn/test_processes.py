"""The proposal network on an ImageNet backbone, trained by two processes, as by one."""

import csv
import io
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as load_tensors
from torchvision.models import resnet50

from stages.common.runtime.devices import choose_device
from stages.common.runtime.processes import run_in_processes
from stages.common.runtime.seeding import make_deterministic
from stages.common.runtime.storage import read_tensors, write_json
from stages.models.backbones.imagenet import load_imagenet_weights
from stages.models.proposals.imagenet import ImagenetWspn, ImagenetWspnConfig
from tests.support.tiny_wspn import WSPN_SECTION, write_wspn_shards

pytestmark = pytest.mark.xdist_group("processes")  # which begins early: these take long
WORKER = "tests.support.wspn_in_processes"
STEPS = 6
# Rounding, beside what a training changes; a share that counts a half or double differs by 1.
TOLERANCE = 2e-3


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with what the stage reads: five images, of which one has a label."""
    folder = tmp_path_factory.mktemp("wspn")
    with pytest.MonkeyPatch.context() as patch:
        write_wspn_shards(folder, patch, (5,))
        categories = [
            {"id": k, "name": name, "split": "base", "forms": [name]}
            for k, name in ((3, "dog"), (4, "cup"))
        ]
        write_json(folder / "data/download/categories.json", categories)
        captions = [
            {"image_id": k, "captions": ["a dog" if k == 1 else "a sky"]} for k in range(1, 6)
        ]
        write_json(folder / "data/download/captions/train/0.json", captions)
        torch.manual_seed(1)
        torch.save(resnet50(weights=None).state_dict(), folder / "resnet50.pth")
        changes = {
            "weights: null": "weights: resnet50.pth",
            "steps: 4": f"steps: {STEPS}",
            "batch_size: 2\n    learning_rate: 0.00001": "batch_size: 3\n    learning_rate: 0.001",
            "weight_decay: 0.0001": "weight_decay: 0.1",
        }
        section = WSPN_SECTION
        for old, new in changes.items():
            assert old in section
            section = section.replace(old, new)
        params = f"seed: 0\ndeterministic: device\nshards: [0]\n{section}"
        (folder / "params.yaml").write_text(params)
        patch.chdir(folder)
        patch.setenv("DEVICE", "cpu")
        yield folder


def train(count: int, output: str) -> dict[str, bytes]:
    """Run the stage in so many processes; return its files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OVIS_PROCESSES", str(count))
        patch.setattr("sys.argv", ["wspn", "--output", output])
        run_in_processes(WORKER, choose_device("device"), 3)
    return {path.name: path.read_bytes() for path in Path(output).iterdir()}


def losses(files: dict[str, bytes]) -> list[dict[str, float]]:
    """Return the losses of each step; not every step has all."""
    rows = csv.DictReader(io.StringIO(files["curve.csv"].decode()))
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def starting_weights() -> dict[str, torch.Tensor]:
    make_deterministic(0, "wspn")
    model = ImagenetWspn(ImagenetWspnConfig("resnet50", [3, 4], 2, 0.5, 3))
    load_imagenet_weights(model.trunk, Path("resnet50.pth"), None)
    return model.state_dict()


@pytest.mark.usefixtures("project")
def test_two_processes_that_are_killed_and_go_on_repeat_one(monkeypatch):
    by_one = train(1, "data/by_one")
    monkeypatch.setenv("KILLED_AT", "4")
    with pytest.raises(SystemExit, match="one of 2 processes"):
        train(2, "data/by_two")
    (state,) = Path(".resume").glob("*/state.safetensors")
    assert read_tensors(state)[1]["step"] == 3
    monkeypatch.delenv("KILLED_AT")
    by_two = train(2, "data/by_two")
    assert not any(Path(".resume").glob("*"))

    rows = losses(by_one)
    unlabelled = [row.keys() == {"step", "loss_image_labels"} for row in rows]
    assert len(rows) == STEPS and 0 < sum(unlabelled) < STEPS
    for row, other in zip(rows, losses(by_two), strict=True):
        assert row == pytest.approx(other, rel=1e-3)
    start = starting_weights()
    weights, others = (load_tensors(files["model.safetensors"]) for files in (by_one, by_two))
    assert weights.keys() == others.keys() == start.keys()
    changed = {name for name in start if not torch.equal(start[name], weights[name])}
    assert {name.split(".")[0] for name in changed} == {
        "trunk",
        "class_part",
        "refinement_parts",
        "quality_part",
    }
    for name in start:
        change, error = weights[name] - start[name], others[name] - weights[name]
        assert error.norm() <= TOLERANCE * change.norm(), name
