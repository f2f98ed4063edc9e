"""Samplers in the Gaussian world, where the right answer is known, and the laws of their grids."""

import math
from itertools import pairwise

import pytest
import torch
from gaussian_world import GaussianWorld

from diffusion import (
    PREDICTIONS,
    SAMPLERS,
    GaussianDiffusion,
    Sampler,
    guided,
    last,
    make_alphas,
    options_of,
    uniform_grid,
)
from diffusion.samplers import ddim, ddpm, dpmpp


def process(T=1000, schedule="cosine", **choices) -> GaussianDiffusion:
    return GaussianDiffusion(make_alphas(schedule, T), **choices)


def noise_source(shape, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=g, dtype=dtype)


def silent():
    raise AssertionError("a deterministic sampler drew noise")


@pytest.mark.parametrize("first", [1, 2])
def test_every_number_of_steps_goes_from_T_to_the_clean_image(first):
    diffusion = process(47, first_timestep=first)
    for steps in range(1, 47 - first + 2):
        t = uniform_grid(diffusion, steps)
        assert len(t) == steps + 1
        assert (t[0], t[-1]) == (47, 0)
        assert all(a > b for a, b in pairwise(t))
        assert steps == 1 or t[-2] >= first
    assert t == [*range(47, first - 1, -1), 0]
    for steps in (0, -1, 47 - first + 2):
        with pytest.raises(ValueError, match=r"steps must lie in 1\.\."):
            uniform_grid(diffusion, steps)


def test_steps_are_even_in_t():
    assert uniform_grid(process(1000), 10) == list(range(1000, -1, -100))
    assert uniform_grid(process(1000), 5, start=500) == list(range(500, -1, -100))


@pytest.mark.parametrize("first", [1, 2])
def test_a_grid_may_start_at_any_trained_t(first):
    diffusion = process(47, first_timestep=first)
    for start in range(first, 48):
        assert uniform_grid(diffusion, start - first + 1, start) == [*range(start, first - 1, -1), 0]
        with pytest.raises(ValueError, match=rf"steps must lie in 1\.\.{start - first + 1}"):
            uniform_grid(diffusion, start - first + 2, start)
    assert uniform_grid(diffusion, 10, 47) == uniform_grid(diffusion, 10)
    for start in (first - 1, -1, 48):
        with pytest.raises(ValueError, match=rf"start must lie in {first}\.\.47"):
            uniform_grid(diffusion, 1, start)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_return_the_distribution(sampler, prediction):
    diffusion = process(1000, "linear", prediction=prediction)
    world, randn = GaussianWorld(diffusion), noise_source((20_000, 1))
    grid = uniform_grid(diffusion, 1000)
    x = last(SAMPLERS[sampler](world, diffusion, randn(), grid, randn, clip=False))
    assert x.dtype == torch.float32
    assert x.mean().item() == pytest.approx(0.3, abs=0.004)
    assert x.std().item() == pytest.approx(0.1, abs=0.004)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_from_any_start_samplers_return_the_distribution(sampler):
    """x_t ~ q(x_t) in, x_0 ~ q(x_0) out."""
    diffusion = process(1000, "linear", prediction="v")
    world, randn = GaussianWorld(diffusion), noise_source((20_000, 1))
    moments = {}
    for start in (300, 20):
        x_t = (world.mean(300) + world.std(300) * randn()).float()
        grid = uniform_grid(diffusion, start, start)
        x = last(SAMPLERS[sampler](world, diffusion, x_t, grid, randn, clip=False))
        moments[start] = x.mean().item(), x.std().item()
    assert moments[300] == pytest.approx((0.3, 0.1), abs=0.006)
    assert moments[20] != pytest.approx((0.3, 0.1), abs=0.006)  # control: x_300 taken for x_20


def test_a_network_that_is_told_the_wrong_t_is_noticed():
    """The control of the tests above."""
    diffusion = process(1000, "linear", prediction="eps")
    world, randn = GaussianWorld(diffusion), noise_source((20_000, 1))

    def late(x, t):
        return world(x, (t - 3).clamp(min=1))

    x = last(ddpm(late, diffusion, randn(), uniform_grid(diffusion, 300), randn, clip=False))
    assert abs(x.std().item() - 0.1) > 0.004


def slope(sampler, counts, schedule):
    """The exponent p in error ~ steps^-p, against the exact probability flow in float64.

    Measured halfway: the last step, onto x_0, jumps over t -> 0, which no grid of whole numbers
    can refine.
    """
    diffusion = process(20_000, schedule)
    world = GaussianWorld(diffusion, m=0.3, s=0.5)
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    errors = []
    for steps in counts:
        grid = uniform_grid(diffusion, steps)
        states = list(sampler(world, diffusion, x_T, grid, silent, clip=False))
        exact = world.flow(x_T, grid[steps // 2])
        errors.append((states[steps // 2 - 1] - exact).abs().max().item())
    x, y = ([math.log(v) for v in values] for values in (counts, errors))
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return -sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum(
        (a - mx) ** 2 for a in x
    )


def test_ddim_converges_with_order_one():
    assert slope(ddim, (20, 40, 80, 160), "linear") == pytest.approx(1, abs=0.15)


def test_dpmpp_converges_with_order_two():
    assert slope(dpmpp, (20, 40, 80, 160), "linear") == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("steps", [5, 10, 20])
def test_second_order_is_more_accurate_in_few_steps(schedule, steps):
    """Also where the schedule ends near SNR 0."""
    diffusion = process(1000, schedule)
    world = GaussianWorld(diffusion, m=0.3, s=0.5)
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    grid = uniform_grid(diffusion, steps)
    exact = world.flow(x_T, grid[-2])
    errors = {}
    for sampler in (ddim, dpmpp):
        states = list(sampler(world, diffusion, x_T, grid, silent, clip=False))
        errors[sampler] = (states[-2] - exact).abs().max()
    assert errors[dpmpp] < 0.7 * errors[ddim]


def test_ddim_between_its_ends():
    """One step of Eqs. 12 and 16 at eta = 0.5, written out."""
    diffusion = process(100, prediction="x0")
    x_T, noise = torch.randn(2, 4, 1, dtype=torch.float64)
    x_0, grid = torch.full_like(x_T, 0.2), uniform_grid(diffusion, 10)
    x = next(ddim(lambda *_: x_0, diffusion, x_T, grid, lambda: noise, eta=0.5))
    t, s = grid[:2]
    bar_t, bar_s = diffusion.alpha_bar[t], diffusion.alpha_bar[s]
    sigma = 0.5 * ((1 - bar_s) / (1 - bar_t)).sqrt() * (1 - bar_t / bar_s).sqrt()  # Eq. 16
    eps = (x_T - bar_t.sqrt() * x_0) / (1 - bar_t).sqrt()
    expected = bar_s.sqrt() * x_0 + (1 - bar_s - sigma**2).sqrt() * eps + sigma * noise
    torch.testing.assert_close(x, expected)


def test_ddim_with_eta_one_is_ddpm():
    diffusion = process(100)
    world, grid = GaussianWorld(diffusion), uniform_grid(diffusion, 20)
    for clip in (True, False):
        runs = []
        for sampler in (ddpm, lambda *a, **k: ddim(*a, eta=1.0, **k), ddim):
            randn = noise_source((6, 1, 3, 3), dtype=torch.float64)
            runs.append(last(sampler(world, diffusion, randn(), grid, randn, clip=clip)))
        torch.testing.assert_close(runs[0], runs[1])
        assert not torch.allclose(runs[0], runs[2], atol=1e-3)  # control: eta = 0


@pytest.mark.parametrize("sampler", [ddim, dpmpp])
def test_deterministic_samplers_draw_nothing(sampler):
    diffusion = process(100)
    x_T, grid = torch.randn(4, 1), uniform_grid(diffusion, 7)
    last(sampler(GaussianWorld(diffusion), diffusion, x_T, grid, silent))
    with pytest.raises(AssertionError, match="drew noise"):
        last(ddpm(GaussianWorld(diffusion), diffusion, x_T, grid, silent))  # control


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_the_last_step_lands_on_the_clean_image(sampler, steps, first):
    """Whatever came before, the end is the network's clean image at the last t, without noise."""
    diffusion = process(50, prediction="x0", first_timestep=first)
    seen = []

    def network(x, t):
        seen.append(int(t[0]))
        return torch.full_like(x, 0.25)

    randn, grid = noise_source((3, 1)), uniform_grid(diffusion, steps)
    states = list(SAMPLERS[sampler](network, diffusion, randn(), grid, randn))
    assert len(states) == len(seen) == steps
    torch.testing.assert_close(states[-1], torch.full((3, 1), 0.25))
    assert seen == grid[:-1]
    assert steps == 1 or not torch.allclose(states[-2], states[-1])  # control


def test_letting_x_1_be_x_0_jumps_from_2_to_the_clean_image():
    seen = []
    diffusion = process(10, prediction="x0", first_timestep=2)
    randn, grid = noise_source((1, 1)), uniform_grid(diffusion, 9)
    last(ddpm(lambda x, t: seen.append(int(t)) or x, diffusion, randn(), grid, randn))
    assert seen == list(range(10, 1, -1))


def test_both_variances_are_the_paper_s():
    """From one x_t, the spread of x_s is sigma^2 of Ho et al. (2020), Sec. 3.2."""
    diffusion = process(10, prediction="x0")
    for variance, expected in (
        ("posterior", diffusion.posterior_variance(10, 5)),
        ("beta", 1 - diffusion.alpha_bar[10] / diffusion.alpha_bar[5]),
    ):
        randn = noise_source((50_000, 1))
        x_T, grid = torch.ones(50_000, 1), uniform_grid(diffusion, 2)
        states = ddpm(lambda x, _: 0 * x, diffusion, x_T, grid, randn, variance=variance)
        assert next(states).var().item() == pytest.approx(expected.item(), rel=0.03)


def test_the_clean_image_is_clipped_on_request():
    diffusion, randn = process(50, prediction="x0"), noise_source((2, 1))
    grid = uniform_grid(diffusion, 5)
    for sampler in SAMPLERS.values():
        for clip, end in ((True, 1.0), (False, 3.0)):
            x = last(sampler(lambda x, _: x * 0 + 3, diffusion, randn(), grid, randn, clip=clip))
            torch.testing.assert_close(x, torch.full((2, 1), end))


def test_sampling_keeps_no_gradient_and_leaves_the_mode_of_the_caller():
    diffusion, weight = process(10, prediction="x0"), torch.ones(1, requires_grad=True)
    x_T, grid = torch.randn(2, 1), uniform_grid(diffusion, 5)
    states = ddpm(lambda x, _: weight * x, diffusion, x_T, grid, noise_source((2, 1)))
    assert not next(states).requires_grad
    assert torch.is_grad_enabled()


def test_a_configured_sampler_is_its_function_with_its_own_options():
    assert options_of("ddpm") == {"clip", "variance"}
    assert options_of("ddim") == {"clip", "eta"}
    diffusion = process(50)
    world, grid = GaussianWorld(diffusion, m=0.95), uniform_grid(diffusion, 5)  # clip matters
    settings = {"steps": 5, "clip": False, "eta": 0.5, "variance": "beta"}
    own = {"ddpm": {"variance": "beta"}, "ddim": {"eta": 0.5}, "dpmpp": {}}
    for name, options in own.items():
        ends = []
        for sampler, extra in (
            (Sampler(name, **settings), {}),
            (SAMPLERS[name], {"clip": False, **options}),
            (SAMPLERS[name], {}),
        ):
            randn = noise_source((4, 1))
            ends.append(last(sampler(world, diffusion, 4 * randn(), grid, randn, **extra)))
        assert torch.equal(ends[0], ends[1])
        assert not torch.equal(ends[0], ends[2])  # control: the defaults


def test_a_configured_sampler_guides_within_its_interval_of_t():
    """guidance_interval counts in t / T, whatever T is."""
    diffusion, labels = process(50), torch.tensor([0, 1])

    def network(x, _t, y):
        return torch.where(y == 10, 1.0, 3.0).view(-1, 1, 1, 1) * torch.ones_like(x)

    x = torch.zeros(2, 1, 1, 1)
    sampler = Sampler("ddpm", 5, guidance=2.0, guidance_interval=(0.2, 0.8))
    guide = sampler.guide(network, labels, 10, diffusion)
    outputs = [guide(x, torch.full((2,), t))[0].item() for t in (9, 10, 40, 41)]
    assert outputs == [3, 1 + 2 * 2, 1 + 2 * 2, 3]
    everywhere = Sampler("ddpm", 5, guidance=2.0).guide(network, labels, 10, diffusion)
    assert everywhere(x, torch.full((2,), 50))[0].item() == 5  # control


def test_guidance_extrapolates_from_no_class_to_the_class():
    seen = []

    def model(x, _t, y):
        seen.append(y)
        return torch.where(y == 10, 1.0, 3.0).view(-1, 1, 1, 1) * torch.ones_like(x)

    x, t, y = torch.zeros(4, 1, 2, 2), torch.ones(4, dtype=torch.long), torch.arange(4)
    assert guided(model, y, 10, 1.0)(x, t).unique() == 3
    assert [len(labels) for labels in seen] == [4]  # scale 1: no unconditional evaluation
    assert guided(model, y, 10, 0.0)(x, t).unique() == 1
    assert guided(model, y, 10, 2.5)(x, t).unique() == 1 + 2.5 * 2
    assert len(seen[-1]) == 8  # any other scale: one batch of both
    within = guided(model, y, 10, 2.5, (3, 5))
    t = torch.tensor([2, 3, 5, 6])
    assert within(x, t).amax((1, 2, 3)).tolist() == [3, 6, 6, 3]
    within(x, t * 10)
    assert len(seen[-1]) == 4  # outside: one evaluation


def test_without_labels_there_is_nothing_to_guide():
    seen = []
    model = guided(lambda x, _t, y: seen.append(y) or x, None, 10, 2.5)
    model(torch.zeros(4, 1), torch.ones(4, dtype=torch.long))
    assert seen == [None]
