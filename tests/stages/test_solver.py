"""Optimizers and schedules of the detector, by hand."""

import pytest
import torch
from torch import nn

from stages.common.checkpoints import Checkpoint
from stages.models.detection.params import TrainingParams
from stages.models.solver import learning_rate, make_optimizer
from tests.stages.tiny_detector import TRAINING

STEPS = {"kind": "steps", "at": [60000, 120000], "factor": 0.1, "warmup_from": 1 / 3}
OFFICIAL = {"learning_rate": 0.02, "warmup_steps": 500, "schedule": STEPS, "gradient_clip": 5.0}
SGD = {"kind": "sgd", "momentum": 0.9}


def settings(**changes) -> TrainingParams:
    return TrainingParams.model_validate(TRAINING | changes)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.02 / 3),
        (250, 0.02 * 2 / 3),  # half-way from a third to the whole
        (500, 0.02),
        (59999, 0.02),
        (60000, 0.002),
        (119999, 0.002),
        (120000, 0.0002),
        (149999, 0.0002),
    ],
)
def test_the_official_schedule(step, rate):
    assert learning_rate(settings(steps=150000, **OFFICIAL), step) == pytest.approx(rate)


def test_no_warmup_starts_at_the_whole_rate():
    schedule = STEPS | {"at": []}
    assert learning_rate(settings(warmup_steps=0, schedule=schedule), 0) == 0.003


def test_steps_must_rise():
    for at in ([120000, 60000], [5, 5]):
        with pytest.raises(ValueError, match=r"at: expected rising steps"):
            settings(schedule=STEPS | {"at": at})


def test_sgd_decays_matrices_only_and_keeps_momentum():
    layer = nn.Linear(1, 1)
    frozen = nn.Linear(1, 1).requires_grad_(False)
    nn.init.constant_(layer.weight, 1.0)
    nn.init.constant_(layer.bias, 1.0)
    params = settings(optimizer=SGD, learning_rate=0.1, weight_decay=0.5)
    optimizer = make_optimizer(nn.ModuleList([layer, frozen]), params)
    for _ in range(2):
        layer.weight.grad, layer.bias.grad = torch.full((1, 1), 2.0), torch.full((1,), 2.0)
        optimizer.step()
    # Velocity 2 + 0.5 * 1 = 2.5, weight 0.75; then 0.9 * 2.5 + 2 + 0.5 * 0.75 = 4.625.
    assert layer.weight.item() == pytest.approx(0.75 - 0.4625)
    # Velocity 2, bias 0.8; then 0.9 * 2 + 2 = 3.8.
    assert layer.bias.item() == pytest.approx(0.8 - 0.38)


def test_biases_learn_at_a_rate_of_their_own():
    layer = nn.Linear(1, 1)
    params = settings(optimizer=SGD, learning_rate=0.1, bias_rate_factor=2.0)
    matrices, vectors = make_optimizer(layer, params).param_groups
    assert [p is layer.weight for p in matrices["params"]] == [True] and matrices["factor"] == 1.0
    assert [p is layer.bias for p in vectors["params"]] == [True] and vectors["factor"] == 2.0


def test_no_limit_leaves_gradients_as_they_are():
    layer = nn.Linear(1, 1)
    layer.weight.grad, layer.bias.grad = torch.full((1, 1), 3e6), torch.full((1,), 4e6)
    limit = settings(gradient_clip=float("inf")).gradient_clip
    assert nn.utils.clip_grad_norm_(layer.parameters(), limit).item() == 5e6
    assert layer.weight.grad.item() == 3e6


@pytest.mark.parametrize("optimizer", [{"kind": "sgd"}, {"kind": "adam"}])
def test_an_optimizer_that_is_not_there_is_refused(optimizer):
    with pytest.raises(ValueError, match="optimizer"):
        settings(optimizer=optimizer)


def test_a_resume_point_keeps_the_momentum(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = settings(optimizer=SGD, learning_rate=0.1, weight_decay=0.5)

    def step(layer: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
        layer.weight.grad, layer.bias.grad = torch.ones(1, 1), torch.ones(1)
        optimizer.step()

    whole, again = nn.Linear(1, 1), nn.Linear(1, 1)
    optimizer = make_optimizer(whole, params)
    step(whole, optimizer)
    Checkpoint("run", 0.0).save(1, whole, optimizer, None)
    step(whole, optimizer)
    resumed = make_optimizer(again, params)
    assert Checkpoint("run", 0.0).restore(again, resumed) == (1, None)
    step(again, resumed)
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
