"""Muon, the learning-rate schedule, the EMA of the weights."""

from dataclasses import asdict
from itertools import pairwise

import pytest
import torch
from torch import nn

from config import ModelConfig
from models import UNet
from models.ema import PowerEMA
from training.optim import DECAYS, MATRIX_LR, LRSchedule, Muon, muon, orthogonalize


def newton_schulz(G: torch.Tensor) -> torch.Tensor:
    """The usual form of Muon's iteration, on the matrix itself (Jordan et al. 2024)."""
    X = G / G.norm()
    for _ in range(5):
        A = X @ X.mT
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (8, 8)])
def test_the_gram_form_is_the_usual_form(shape):
    torch.manual_seed(0)
    G = torch.randn(shape, dtype=torch.float64)
    wide = G if shape[0] <= shape[1] else G.T
    expected = newton_schulz(wide)
    expected = expected if shape[0] <= shape[1] else expected.T
    expected = expected * max(1, shape[0] / shape[1]) ** 0.5
    torch.testing.assert_close(orthogonalize([G])[0], expected, rtol=1e-6, atol=1e-8)


def test_updates_are_nearly_orthogonal():
    torch.manual_seed(0)
    update = orthogonalize([torch.randn(16, 64)])[0]
    values = torch.linalg.svdvals(update)
    assert values.min() > 0.6
    assert values.max() < 1.3
    values = torch.linalg.svdvals(torch.randn(16, 64))
    assert values.max() > 1.3  # control


def test_batching_layers_changes_nothing():
    torch.manual_seed(0)
    matrices = [torch.randn(8, 24), torch.randn(24, 8), torch.randn(4, 9), torch.randn(8, 8)]
    for together, G in zip(orthogonalize(matrices), matrices, strict=True):
        torch.testing.assert_close(together, orthogonalize([G])[0])


def test_a_zero_gradient_gives_a_zero_update():
    assert orthogonalize([torch.zeros(4, 8)])[0].count_nonzero() == 0


def test_muon_descends_on_a_convolution():
    torch.manual_seed(0)
    conv, x, target = nn.Conv2d(3, 6, 3), torch.randn(8, 3, 8, 8), torch.randn(8, 6, 6, 6)
    optimizer = Muon([conv.weight], lr=0.02)
    losses = []
    for _ in range(30):
        loss = (conv(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize("shape", [(16, 40), (40, 16)])
def test_muon_is_that_of_torch(shape):
    """But for bfloat16, in which torch iterates: momentum, Nesterov, scale and rate."""
    torch.manual_seed(0)
    start, *gradients = torch.randn(6, *shape)
    params = [nn.Parameter(start.clone()) for _ in range(3)]
    ours, theirs = Muon(params[:1], lr=0.02), torch.optim.Muon(params[1:2], 0.02, weight_decay=0)
    other = torch.optim.Muon(params[2:], 0.02, weight_decay=0, nesterov=False)
    for gradient in gradients:
        for p, optimizer in zip(params, (ours, theirs, other), strict=True):
            p.grad = gradient.clone()
            optimizer.step()
    found, expected, plain = (p.detach() for p in params)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    assert (plain - expected).abs().max() > 4e-3  # control


def test_matrices_have_ten_times_the_learning_rate():
    model = UNet(**{**asdict(ModelConfig()), "num_classes": 10})
    matrices, rest = muon(model, 1e-3, 0.0)
    assert (matrices.param_groups[0]["lr"], rest.param_groups[0]["lr"]) == (1e-2, 1e-3)
    assert MATRIX_LR == 10
    counted = sum(len(o.param_groups[0]["params"]) for o in (matrices, rest))
    assert counted == len(list(model.parameters()))


def test_muon_continues_from_its_state():
    def steps(optimizer, p, gradients):
        for g in gradients:
            p.grad = g.clone()
            optimizer.step()

    torch.manual_seed(0)
    gradients = torch.randn(6, 4, 8).unbind()
    unbroken = nn.Parameter(torch.zeros(4, 8))
    steps(Muon([unbroken], 0.1), unbroken, gradients)

    for restore in (True, False):
        broken = nn.Parameter(torch.zeros(4, 8))
        first = Muon([broken], 0.1)
        steps(first, broken, gradients[:3])
        second = Muon([broken], 0.1)
        if restore:
            second.load_state_dict(first.state_dict())
        steps(second, broken, gradients[3:])
        assert torch.equal(broken, unbroken) == restore  # without the state: the control


def test_the_schedule_rises_falls_and_ends():
    schedule = LRSchedule.over(1000, 100, "cosine")
    factors = [schedule.factor(step) for step in range(1, 1001)]
    assert factors[:100] == [(i + 1) / 100 for i in range(100)]
    assert max(factors) == factors[99] == 1
    assert all(a > b for a, b in pairwise(factors[99:]))
    assert 0 < factors[-1] < 1e-4


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("total", [1, 2, 3, 50])
def test_short_schedules_have_a_positive_rate_at_every_step(decay, total):
    schedule = LRSchedule.over(total, 100, decay)
    assert all(0 < schedule.factor(step) <= 1 for step in range(1, total + 1))


def test_the_ema_of_a_ramp_is_the_closed_form():
    """With power g the weight of update k of n is proportional to k^g (Karras et al. 2024)."""
    model, power, n = nn.Linear(1, 1, bias=False), 3.0, 200
    ema = PowerEMA(model, power, max_decay=1.0)
    for k in range(1, n + 1):
        nn.init.constant_(model.weight, float(k))
        ema.update_parameters(model)
    expected = (power + 1) / (power + 2) * n
    assert ema.module.weight.item() == pytest.approx(expected, rel=0.01)


def test_a_decay_of_zero_copies_the_weights():
    model = nn.Linear(1, 1, bias=False)
    ema = PowerEMA(model, 13.0, max_decay=0.0)
    for k in (1.0, 2.0, 3.0):
        nn.init.constant_(model.weight, k)
        ema.update_parameters(model)
    assert ema.module.weight.item() == 3
    assert not ema.module.weight.requires_grad
    assert not ema.training


def test_the_largest_decay_bounds_the_averaging_window():
    model = nn.Linear(1, 1, bias=False)
    ema = PowerEMA(model, 0.0, max_decay=0.5)  # on a ramp, decay d lags by d / (1 - d) = 1
    for k in range(1, 101):
        nn.init.constant_(model.weight, float(k))
        ema.update_parameters(model)
    assert ema.module.weight.item() == pytest.approx(99, abs=1e-3)
