"""Grids: their ends, their steps, where they rise; and what a configured sampler makes of them."""

from itertools import pairwise

import pytest
import torch
from gaussian_world import GaussianWorld, moments

from diffusion import (
    SAMPLERS,
    SPACINGS,
    DiffusionModel,
    GaussianDiffusion,
    Sampler,
    generate,
    make_alphas,
    uniform_grid,
)
from diffusion.grids import churned, descents, nearest, restarted, sigmas
from diffusion.samplers import heun


def process(T=1000, schedule="cosine", **choices) -> GaussianDiffusion:
    return GaussianDiffusion(make_alphas(schedule, T), **choices)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("first", [1, 2])
def test_every_number_of_steps_walks_from_T_to_the_clean_image(first, spacing):
    diffusion = process(47, first_timestep=first)
    for steps in range(1, 47 - first + 2):
        t = SPACINGS[spacing](diffusion, steps, None)
        assert len(t) == steps + 1
        assert (t[0], t[-1]) == (47, 0)
        assert all(a > b for a, b in pairwise(t))
        assert steps == 1 or t[-2] >= first
    assert t == [*range(47, first - 1, -1), 0]
    for steps in (0, -1, 47 - first + 2):
        with pytest.raises(ValueError, match=r"steps must lie in 1\.\."):
            SPACINGS[spacing](diffusion, steps, None)


def test_steps_are_even_in_t():
    assert uniform_grid(process(1000), 10) == list(range(1000, -1, -100))


def test_a_grid_can_begin_below_T():
    diffusion = process(50, first_timestep=2)
    assert uniform_grid(diffusion, 4, 20) == [20, 15, 10, 6, 0]  # from 20, 15.25, 10.5, 5.75
    assert uniform_grid(diffusion, 5) == uniform_grid(diffusion, 5, start=50)
    for start in (1, 0, 51):
        with pytest.raises(ValueError, match=r"start must lie in 2\.\.50"):
            uniform_grid(diffusion, 1, start)
    with pytest.raises(ValueError, match=r"steps must lie in 1\.\.19"):
        uniform_grid(diffusion, 20, 20)


SCALES = {
    "log-snr": (torch.log, torch.exp),
    "karras": (lambda sigma: sigma ** (1 / 7), lambda scaled: scaled**7),
}


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("spacing", SCALES)
def test_steps_are_even_in_what_the_spacing_says(spacing, schedule):
    """At the nearest t; from EDM's largest sigma, where that of T is larger, to that of t = 1."""
    diffusion = process(100_000, schedule)
    sigma, (scale, inverse) = sigmas(diffusion), SCALES[spacing]
    ends = torch.tensor([min(80.0, sigma[-1]), sigma[1]], dtype=torch.float64)
    wanted = inverse(torch.linspace(*scale(ends), 20, dtype=torch.float64))
    nearest = (sigma[1:].log() - wanted[:, None].log()).abs().argmin(1) + 1
    expected = [100_000, *nearest.tolist()[1:], 0]
    assert SPACINGS[spacing](diffusion, 20, None) == expected
    assert uniform_grid(diffusion, 20) != expected  # control


def test_spacings_begin_at_the_start_and_where_there_is_no_signal():
    zero = GaussianDiffusion(make_alphas("linear", 1000, zero_terminal=True))
    for spacing in SPACINGS.values():
        assert spacing(zero, 10, None)[0] == 1000
        grid = spacing(zero, 5, 300)
        assert (grid[0], grid[-1], len(grid)) == (300, 0, 6)
        assert spacing(zero, 1, 300) == [300, 0]


def test_the_nearest_in_log():
    sigma = torch.tensor([0.1, 1.0, 10.0])
    assert nearest(sigma, torch.tensor([0.01, 0.3, 0.33, 3.0, 3.3, 99.0])).tolist() == [
        0, 0, 1, 1, 2, 2
    ]  # fmt: skip


def test_a_restart_repeats_the_steps_of_its_interval():
    grid = [100, 80, 60, 40, 20, 0]
    assert restarted(grid, (38, 83), 2) == [100, 80, 60, 40, 80, 60, 40, 80, 60, 40, 20, 0]
    assert restarted(grid, (0, 30), 1) == [100, 80, 60, 40, 20, 40, 20, 0]
    assert [*descents(restarted(grid, (0, 30), 1))] == [[100, 80, 60, 40, 20], [40, 20, 0]]
    with pytest.raises(ValueError, match=r"holds no step.*t = 40"):
        restarted(grid, (35, 45), 1)


def test_churn_raises_sigma_before_every_step_but_the_first():
    diffusion = process(100_000)
    sigma, grid = sigmas(diffusion), uniform_grid(diffusion, 20)
    for churn, factor in ((4.0, 1.2), (40.0, 2**0.5)):  # S_churn / steps, and its bound
        found = churned(diffusion, grid, churn, 20)
        assert found[:2] == grid[:2]  # not above T
        assert found[1::2] == grid[1:]
        for t, up in zip(found[1:-1:2], found[2::2], strict=True):
            assert (sigma[up] / sigma[t]).item() == pytest.approx(factor, rel=0.01)
    with pytest.raises(ValueError, match="--churn 1e-06 has no effect"):
        churned(diffusion, grid, 1e-6, 20)
    with pytest.raises(ValueError, match="no effect"):
        churned(diffusion, [100_000, 0], 20, 1)


RISING = {
    "churn": {"churn": 20.0},
    "restart": {"restart": 3, "restart_interval": (0.05, 0.5)},
    "both": {"churn": 20.0, "restart": 1},
}


@pytest.mark.parametrize("settings", RISING.values(), ids=RISING)
def test_churn_and_restart_keep_the_distribution(settings):
    diffusion = process(1000, "linear")
    world, grid = GaussianWorld(diffusion), Sampler("heun", 200, **settings).grid(diffusion)
    mean, std = moments(world, heun, grid)[-2]
    assert mean == pytest.approx(world.mean(grid[-2]).item(), abs=1e-9)
    assert std == pytest.approx(world.std(grid[-2]).item(), rel=0.01)


class WrongAbove(GaussianWorld):
    """Its network errs where t > 500."""

    def __call__(self, x, t):
        return super().__call__(x, t) + 0.3 * (t > 500).view(-1, *[1] * (x.ndim - 1))


@pytest.mark.parametrize("settings", RISING.values(), ids=RISING)
def test_churn_and_restart_contract_errors_that_were_made_before(settings):
    """What they are for. Without, the flow keeps them: the control."""
    diffusion = process(1000, "linear")
    wrong, found = WrongAbove(diffusion), {}
    for own in ({}, settings):
        grid = Sampler("heun", 100, **own).grid(diffusion)
        found[len(own)] = abs(moments(wrong, heun, grid)[-1][0] - 0.3)
    assert found[0] > 1e-3
    assert found[len(settings)] < 0.7 * found[0]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_evaluations_are_those_of_the_network(sampler, spacing, guidance):
    """Of every move, and what progress is told; a rise takes none, a guided one counts twice."""
    diffusion, count, told = process(50), 0, []

    def network(x, t, y):
        nonlocal count
        count += len(x)
        return 0.5 * x + 0 * y.view(-1, 1, 1, 1) + 0 * t.view(-1, 1, 1, 1)

    model = DiffusionModel(network, diffusion, (1, 2, 2), 10, None)
    for steps, more in ((1, {}), (7, {}), (7, {"restart": 2, "churn": 9.0})):
        options = {"guidance": guidance, "guidance_interval": (0.2, 0.6)} | more
        own, count = Sampler(sampler, steps, spacing, **options), 0
        told.clear()
        generate(model, own, range(3), torch.arange(3), progress=told.append)
        grid = own.grid(diffusion)
        costs = own.evaluations(diffusion, grid, True)
        assert [n // 3 for n in told] == costs
        assert sum(costs) == count // 3
        assert [cost > 0 for cost in costs] == [s < t for t, s in pairwise(grid)]
    unguided = sum(own.evaluations(diffusion, grid, False))
    assert (unguided < sum(costs)) == (guidance != 1)  # control
