"""Optimizers and schedules, by hand."""

import pytest
import torch
from torch import nn

from stages.common.runtime.checkpoints import Checkpoint
from stages.models.detection.params import TrainingParams
from stages.models.detection.training import make_schedule
from stages.models.solver import cosine, make_optimizer, set_rate, step_decay, update
from tests.support.tiny_detector import TRAINING

STEPS = {"kind": "steps", "at": [60000, 120000], "factor": 0.1, "warmup_from": 1 / 3}
OFFICIAL = {"learning_rate": 0.02, "warmup_steps": 500, "schedule": STEPS, "gradient_clip": 5.0}
SGD = {"weight_decay": 0.5, "momentum": 0.9}


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
    assert make_schedule(settings(steps=150000, **OFFICIAL))(step) == pytest.approx(rate)


def test_the_schedule_of_the_proposal_network():
    rates = map(step_decay(1.0, [2, 3], 0.1, warmup_steps=2, warmup_from=1 / 3), range(4))
    assert [*rates] == pytest.approx([1 / 3, 2 / 3, 0.1, 0.01])


def test_no_warmup_starts_at_the_whole_rate():
    assert step_decay(0.003, [], 0.1, warmup_steps=0, warmup_from=1 / 3)(0) == 0.003
    assert cosine(0.003, 4)(0) == 0.003


def test_a_cosine_ends_at_a_fraction_of_the_rate():
    rates = [*map(cosine(2.0, 4, warmup_steps=2, last=0.5), range(5))]
    assert rates == pytest.approx([1.0, 1.8535534, 1.5, 1.1464466, 1.0])


def test_steps_must_rise():
    for at in ([120000, 60000], [5, 5]):
        with pytest.raises(ValueError, match=r"at: expected rising steps"):
            settings(schedule=STEPS | {"at": at})


def test_sgd_decays_matrices_only_and_keeps_momentum():
    layer = nn.Linear(1, 1)
    frozen = nn.Linear(1, 1).requires_grad_(False)
    nn.init.constant_(layer.weight, 1.0)
    nn.init.constant_(layer.bias, 1.0)
    optimizer = make_optimizer(nn.ModuleList([layer, frozen]), **SGD)
    set_rate(optimizer, 0.1)
    for _ in range(2):
        layer.weight.grad, layer.bias.grad = torch.full((1, 1), 2.0), torch.full((1,), 2.0)
        optimizer.step()
    # Velocity 2 + 0.5 * 1 = 2.5, weight 0.75; then 0.9 * 2.5 + 2 + 0.5 * 0.75 = 4.625.
    assert layer.weight.item() == pytest.approx(0.75 - 0.4625)
    # Velocity 2, bias 0.8; then 0.9 * 2 + 2 = 3.8.
    assert layer.bias.item() == pytest.approx(0.8 - 0.38)


def test_biases_learn_at_a_rate_of_their_own():
    layer = nn.Linear(1, 1)
    optimizer = make_optimizer(layer, **SGD, vector_factor=2.0)
    set_rate(optimizer, 0.1)
    matrices, vectors = optimizer.param_groups
    assert [p is layer.weight for p in matrices["params"]] == [True] and matrices["lr"] == 0.1
    assert [p is layer.bias for p in vectors["params"]] == [True] and vectors["lr"] == 0.2


def test_no_limit_leaves_gradients_as_they_are():
    layer = nn.Linear(1, 1)
    layer.weight.grad, layer.bias.grad = torch.full((1, 1), 3e6), torch.full((1,), 4e6)
    limit = settings(gradient_clip=float("inf")).gradient_clip
    assert nn.utils.clip_grad_norm_(layer.parameters(), limit).item() == 5e6
    assert layer.weight.grad.item() == 3e6


def test_an_update_limits_the_gradient_and_decays_vectors_if_asked():
    layer = nn.Linear(1, 1)
    optimizer = make_optimizer(layer, 0.0, momentum=0.0, decay_vectors=True)
    assert len(optimizer.param_groups) == 1
    before = [p.item() for p in layer.parameters()]
    update(layer, optimizer, 3 * layer.weight.sum() + 4 * layer.bias.sum(), 0.1, 1.0)
    moved = [old - p.item() for old, p in zip(before, layer.parameters(), strict=True)]
    assert moved == pytest.approx([0.06, 0.08], rel=1e-4)  # a gradient of norm 5, at norm 1


@pytest.mark.parametrize("optimizer", [{"kind": "sgd"}, {"kind": "adam"}])
def test_an_optimizer_that_is_not_there_is_refused(optimizer):
    with pytest.raises(ValueError, match="optimizer"):
        settings(optimizer=optimizer)


def test_a_resume_point_keeps_the_momentum(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def step(layer: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
        layer.weight.grad, layer.bias.grad = torch.ones(1, 1), torch.ones(1)
        set_rate(optimizer, 0.1)
        optimizer.step()

    whole, again = nn.Linear(1, 1), nn.Linear(1, 1)
    optimizer = make_optimizer(whole, **SGD)
    step(whole, optimizer)
    Checkpoint("run", 0.0).save(1, whole, optimizer, None)
    step(whole, optimizer)
    resumed = make_optimizer(again, **SGD)
    assert Checkpoint("run", 0.0).restore(again, resumed) == (1, None)
    step(again, resumed)
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
