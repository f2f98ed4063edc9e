"""Samplers in the Gaussian world, where the right answer is known."""

import math

import pytest
import torch
from gaussian_world import GaussianWorld, moments

from diffusion import (
    PREDICTIONS,
    SAMPLERS,
    DiffusionModel,
    GaussianDiffusion,
    Sampler,
    generate,
    guided,
    last,
    make_alphas,
    options_of,
    samplers,
    uniform_grid,
)
from diffusion.samplers import ddim, ddpm, dpmpp, heun, unipc


def process(T=1000, schedule="cosine", **choices) -> GaussianDiffusion:
    return GaussianDiffusion(make_alphas(schedule, T), **choices)


def noise_source(shape, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=g, dtype=dtype)


def silent():
    raise AssertionError("a deterministic sampler drew noise")


def run(sampler, model, diffusion, x, steps, randn, **options):
    """The states of a reverse process on the uniform grid."""
    return sampler(model, diffusion, x, uniform_grid(diffusion, steps), randn, **options)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_return_the_distribution(sampler, prediction):
    diffusion = process(1000, "linear", prediction=prediction)
    world, randn = GaussianWorld(diffusion), noise_source((10_000, 1))
    x = last(run(SAMPLERS[sampler], world, diffusion, randn(), 1000, randn, clip=False))
    assert x.dtype == torch.float32
    assert x.mean().item() == pytest.approx(0.3, abs=0.004)
    assert x.std().item() == pytest.approx(0.1, abs=0.004)


def test_a_network_that_is_told_the_wrong_t_is_noticed():
    """The control of the test above."""
    diffusion = process(1000, "linear", prediction="eps")
    world, randn = GaussianWorld(diffusion), noise_source((10_000, 1))

    def late(x, t):
        return world(x, (t - 3).clamp(min=1))

    x = last(run(ddpm, late, diffusion, randn(), 300, randn, clip=False))
    assert abs(x.std().item() - 0.1) > 0.004


def slope(sampler, schedule="linear", counts=(20, 40, 80, 160), **options):
    """The exponent p in error ~ steps^-p of the states' standard deviation, in float64.

    Of a deterministic sampler that is the error of the probability flow: in this world it scales
    every x_T. Measured half-way: the step onto x_0 jumps over t -> 0, which no grid of whole
    numbers can refine.
    """
    diffusion = process(20_000, schedule)
    world, errors = GaussianWorld(diffusion, m=0.3, s=0.5), []
    for steps in counts:
        grid = uniform_grid(diffusion, steps)
        _, std = moments(world, sampler, grid, **options)[steps // 2]
        errors.append(abs(std - world.std(grid[steps // 2]).item()))
    x, y = ([math.log(v) for v in values] for values in (counts, errors))
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return -sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum(
        (a - mx) ** 2 for a in x
    )


def without_correction(*arguments, order, clip):
    """UniP alone: unipc whose every state is replaced, by an equal one."""
    states = unipc(*arguments, order=order, clip=clip)
    sent = None
    for _ in arguments[3][1:]:
        yield (x := states.send(sent))
        sent = x.clone()


@pytest.mark.parametrize(
    ("sampler", "options", "order"),
    [
        (ddpm, {}, 1),
        (ddim, {}, 1),
        (ddim, {"eta": 1.0}, 1),
        (heun, {}, 2),
        (dpmpp, {}, 2),
        (dpmpp, {"eta": 0.5}, 2),
        (dpmpp, {"eta": 1.0}, 2),
        (unipc, {"order": 2}, 3),
        (unipc, {"order": 3}, 4),
        (without_correction, {"order": 2}, 2),  # controls
        (without_correction, {"order": 3}, 3),
    ],
)
def test_the_order_of_convergence(sampler, options, order):
    """UniPC's correction adds one (Zhao et al. 2023). Each is a control of those of other order."""
    assert slope(sampler, **options) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("steps", [5, 10, 20])
def test_a_higher_order_pays_in_few_steps(schedule, steps):
    """Also where the schedule ends near SNR 0. Five steps of Heun's are too large for it."""
    diffusion = process(1000, schedule)
    world = GaussianWorld(diffusion, m=0.3, s=0.5)
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    grid, errors = uniform_grid(diffusion, steps), {}
    higher = (dpmpp, unipc) if steps == 5 else (dpmpp, unipc, heun)
    exact = world.flow(x_T, grid[-2])
    for sampler in (ddim, *higher):
        states = list(sampler(world, diffusion, x_T, grid, silent, clip=False))
        errors[sampler] = (states[-2] - exact).abs().max()
    assert max(errors[own] for own in higher) < 0.7 * errors[ddim]


def test_ddim_between_its_ends():
    """One step of Eqs. 12 and 16 at eta = 0.5, written out."""
    diffusion = process(100, prediction="x0")
    x_T, noise = torch.randn(2, 4, 1, dtype=torch.float64)
    x_0, (t, s) = torch.full_like(x_T, 0.2), uniform_grid(diffusion, 10)[:2]
    x = next(run(ddim, lambda *_: x_0, diffusion, x_T, 10, lambda: noise, eta=0.5))
    bar_t, bar_s = diffusion.alpha_bar[t], diffusion.alpha_bar[s]
    sigma = 0.5 * ((1 - bar_s) / (1 - bar_t)).sqrt() * (1 - bar_t / bar_s).sqrt()  # Eq. 16
    eps = (x_T - bar_t.sqrt() * x_0) / (1 - bar_t).sqrt()
    expected = bar_s.sqrt() * x_0 + (1 - bar_s - sigma**2).sqrt() * eps + sigma * noise
    torch.testing.assert_close(x, expected)


def test_ddim_with_eta_one_is_ddpm():
    diffusion = process(100)
    world = GaussianWorld(diffusion)
    for clip in (True, False):
        runs = []
        for sampler in (ddpm, lambda *a, **k: ddim(*a, eta=1.0, **k), ddim):
            randn = noise_source((6, 1, 3, 3), dtype=torch.float64)
            runs.append(last(run(sampler, world, diffusion, randn(), 20, randn, clip=clip)))
        torch.testing.assert_close(runs[0], runs[1])
        assert not torch.allclose(runs[0], runs[2], atol=1e-3)  # control: eta = 0


@pytest.mark.parametrize("sampler", [ddim, heun, dpmpp, unipc])
def test_deterministic_samplers_draw_nothing(sampler):
    diffusion = process(100)
    x_T = torch.randn(4, 1)
    for _ in run(sampler, GaussianWorld(diffusion), diffusion, x_T, 7, silent):
        pass
    with pytest.raises(AssertionError, match="drew noise"):
        last(run(ddpm, GaussianWorld(diffusion), diffusion, x_T, 7, silent))  # control


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

    randn = noise_source((3, 1))
    states = list(run(SAMPLERS[sampler], network, diffusion, randn(), steps, randn))
    assert len(states) == steps
    assert len(seen) == (steps if sampler != "heun" or steps == 1 else 2 * steps - 2)
    torch.testing.assert_close(states[-1], torch.full((3, 1), 0.25))
    assert seen[0] == 50
    assert steps == 1 or seen[-1] >= first
    assert steps == 1 or not torch.allclose(states[-2], states[-1])  # control


def test_letting_x_1_be_x_0_jumps_from_2_to_the_clean_image():
    seen = []
    diffusion = process(10, prediction="x0", first_timestep=2)
    randn = noise_source((1, 1))
    last(run(ddpm, lambda x, t: seen.append(int(t)) or x, diffusion, randn(), 9, randn))
    assert seen == list(range(10, 1, -1))


def test_both_variances_are_the_paper_s():
    """From one x_t, the spread of x_s is sigma^2 of Ho et al. (2020), Sec. 3.2."""
    diffusion = process(10, prediction="x0")
    for variance, expected in (
        ("posterior", diffusion.posterior_variance(10, 5)),
        ("beta", 1 - diffusion.alpha_bar[10] / diffusion.alpha_bar[5]),
    ):
        randn = noise_source((50_000, 1))
        step = run(
            ddpm,
            lambda x, _: torch.zeros_like(x),
            diffusion,
            torch.ones(50_000, 1),
            2,
            randn,
            variance=variance,
        )
        assert next(step).var().item() == pytest.approx(expected.item(), rel=0.03)


def test_the_clean_image_is_clipped_on_request():
    diffusion, randn = process(50, prediction="x0"), noise_source((2, 1))
    for sampler in SAMPLERS.values():
        for clip, end in ((True, 1.0), (False, 3.0)):
            x = last(run(sampler, lambda x, _: x * 0 + 3, diffusion, randn(), 5, randn, clip=clip))
            torch.testing.assert_close(x, torch.full((2, 1), end))


def test_sampling_keeps_no_gradient_and_leaves_the_mode_of_the_caller():
    diffusion, randn = process(10, prediction="x0"), noise_source((2, 1))
    weight = torch.ones(1, requires_grad=True)
    states = run(ddpm, lambda x, _: weight * x, diffusion, torch.ones(2, 1), 5, randn)
    assert not next(states).requires_grad
    assert torch.is_grad_enabled()


def test_a_configured_sampler_passes_on_its_own_options_only():
    assert options_of("ddpm") == {"clip", "variance"}
    assert options_of("ddim") == {"clip", "eta"}
    assert options_of("heun") == {"clip"}
    assert options_of("dpmpp") == {"clip", "eta"}
    assert options_of("unipc") == {"clip", "order"}
    diffusion = process(100)
    world, grid = GaussianWorld(diffusion), uniform_grid(diffusion, 10)
    own = {"ddpm": {"variance": "beta"}, "ddim": {"eta": 0.5}, "heun": {}}
    own |= {"dpmpp": {"eta": 0.5}, "unipc": {"order": 3}}
    for name, options in own.items():
        runs = []
        for settings in ({"variance": "beta", "eta": 0.5, "order": 3}, {}):
            randn = noise_source((6, 1))
            configured = Sampler(name, 10, clip=False, **settings)
            runs.append(last(configured(world, diffusion, randn(), grid, randn)))
        randn = noise_source((6, 1))
        plain = SAMPLERS[name](world, diffusion, randn(), grid, randn, clip=False, **options)
        assert torch.equal(runs[0], last(plain))
        assert torch.equal(*runs) == (not options)  # control: options that matter


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_from_x_t_below_T_samplers_return_the_distribution(sampler):
    diffusion = process(1000, prediction="v")
    world, randn = GaussianWorld(diffusion), noise_source((10_000, 1))
    x_t = world.mean(400).float() + world.std(400).float() * randn()
    grid = uniform_grid(diffusion, 400, start=400)
    x = last(SAMPLERS[sampler](world, diffusion, x_t, grid, randn, clip=False))
    assert x.mean().item() == pytest.approx(0.3, abs=0.004)
    assert x.std().item() == pytest.approx(0.1, abs=0.004)
    wrong = last(SAMPLERS[sampler](world, diffusion, randn(), grid, randn, clip=False))
    assert abs(wrong.mean().item() - 0.3) > 0.004  # control: noise is not x_400


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_where_the_grid_rises_the_state_is_that_of_the_forward_process(sampler):
    """Up and down again, twice: the distribution at every t of the grid, to the solver's error."""
    diffusion = process(1000, "linear")
    world, down = GaussianWorld(diffusion, s=0.3), [*range(1000, 100, -5)]
    grid = [*down, *range(600, 100, -3), *range(300, 100, -2), *range(100, 1, -1)]
    found = moments(world, SAMPLERS[sampler], grid)
    for t, (mean, std) in zip(grid, found, strict=True):
        assert mean == pytest.approx(world.mean(t).item(), abs=1e-9)
        assert std == pytest.approx(world.std(t).item(), rel=0.015)
    started = moments(world, SAMPLERS[sampler], grid[len(down) :])[1:]
    after = found[len(down) + 1 :]
    assert [std for _, std in after] == pytest.approx([std for _, std in started], rel=0.015)


def test_a_rise_without_noise_is_noticed(monkeypatch):
    """The control of the test above."""
    diffusion = process(1000, "linear")
    world, grid = GaussianWorld(diffusion), [*range(1000, 100, -10), *range(600, 100, -10)]
    monkeypatch.setattr(diffusion, "renoise", lambda x, *_: x)
    assert moments(world, heun, grid)[-1][1] < 0.8 * world.std(grid[-1]).item()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_state_that_is_sent_replaces_the_one_that_was_yielded(sampler):
    """A sampler goes on from it as one that started there; those that look back, from there on."""
    diffusion, grid = process(100), [100, 80, 60, 70, 40, 20, 0]
    world, x_T = GaussianWorld(diffusion), torch.randn(4, 1, dtype=torch.float64)

    def states(sent, then=1.0, grid=grid, x=x_T):
        """All states, if after the second one this is sent; noise is always ``then``."""
        own, found = SAMPLERS[sampler](world, diffusion, x, grid, lambda: x_T * then), []
        for i in range(len(grid) - 1):
            found.append(own.send(sent if i == 2 else found[-1] if i else None))
        return found

    plain, other = states(None), torch.full_like(x_T, 0.4)
    assert all(map(torch.equal, plain, states(plain[1].clone())))
    changed = states(other)
    assert torch.equal(changed[2], diffusion.renoise(other, 60, 70, x_T))
    anew = states(None, grid=grid[2:], x=other)
    assert all(map(torch.equal, changed[2:], anew))  # after a rise nothing is remembered
    assert not torch.allclose(changed[-1], plain[-1], atol=1e-3)  # control


def test_a_replaced_state_is_not_corrected():
    """As the correction, which goes on from the state before, would undo it."""
    diffusion, x_T = process(100), torch.randn(4, 1, dtype=torch.float64)
    grid, seen = [100, 80, 60, 40, 0], []

    def network(x, t):
        seen.append(x)
        return GaussianWorld(diffusion)(x, t)

    for replaced in (True, False):
        states = unipc(network, diffusion, x_T, grid, silent)
        first = next(states)
        second = states.send(first + 1e-9 if replaced else None)
        h, x_0 = [], diffusion.denoise(network, first, 80, True)
        for t, s in ((100, 80), (80, 60)):
            h.append((diffusion.snr(s) / diffusion.snr(t)).log() / 2)
        before = diffusion.denoise(network, x_T, 100, True)
        D = x_0 + (x_0 - before) * h[1] / h[0] / 2
        (_, b), (a_s, b_s) = diffusion.scales(80, x_T), diffusion.scales(60, x_T)
        expected = b_s / b * first - a_s * torch.expm1(-h[1]) * D
        assert torch.allclose(second, expected, atol=1e-7) == replaced


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("options", [{}, {"eta": 1.0}], ids=["", "eta"])
def test_from_noise_without_signal_steps_are_finite_and_right(sampler, options):
    """alpha_bar_T = 0: sigma_T is infinite."""
    diffusion = GaussianDiffusion(make_alphas("linear", 1000, zero_terminal=True))
    options = {name: value for name, value in options.items() if name in options_of(sampler)}
    world = GaussianWorld(diffusion, m=0.3, s=0.5)
    grid = uniform_grid(diffusion, 200)
    _, std = moments(world, SAMPLERS[sampler], grid, **options)[-2]
    assert std == pytest.approx(world.std(grid[-2]).item(), rel=0.04)


def test_from_almost_no_signal_heun_s_first_step_is_euler_s(monkeypatch):
    """The trapezoid would be off by more than there is; sigma falls from 20,000 to 6."""
    diffusion = process(1000)
    world, grid = GaussianWorld(diffusion, m=0.3, s=0.5), uniform_grid(diffusion, 10)
    exact = world.std(grid[1]).item()
    assert moments(world, heun, grid)[1][1] == pytest.approx(exact, rel=0.03)
    monkeypatch.setattr(samplers, "NOISE_ALONE", 0.0)
    assert abs(moments(world, heun, grid)[1][1] - exact) > 5 * exact  # control


def in_batches(network, sampler, size):
    """Eleven images, guided, in batches of this size."""
    diffusion = process(50)
    model = DiffusionModel(network, diffusion, (1, 5, 5), 10, None)
    rises = {"churn": 20.0, "restart": 2, "restart_interval": (0.2, 0.6)}
    settings = Sampler(sampler, 6, eta=0.5, guidance=3.0, guidance_interval=(0.2, 0.8), **rises)
    return generate(model, settings, range(11), torch.arange(11) % 10, batch_size=size)[0]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_bits_of_a_guided_image_do_not_depend_on_its_batch(sampler):
    """Where those of the network do not: its every operation is of one pixel."""

    def network(x, t, y):
        return x * (0.5 + y.view(-1, 1, 1, 1) / 30) + t.view(-1, 1, 1, 1) / 100

    def mixing(x, t, y):
        return network(x, t, y) - 1e-6 * x.mean()

    whole, mixed = (in_batches(n, sampler, 11) for n in (network, mixing))
    for size in (1, 2, 3, 10):
        assert torch.equal(in_batches(network, sampler, size), whole)
        assert not torch.equal(in_batches(mixing, sampler, size), mixed)  # control


def test_guidance_extrapolates_from_no_class_to_the_class():
    labels = []

    def model(x, _t, y):
        labels.append(y)
        return torch.where(y == 10, 1.0, 3.0).view(-1, 1, 1, 1) * torch.ones_like(x)

    x, t, y = torch.zeros(4, 1, 2, 2), torch.ones(4, dtype=torch.long), torch.arange(4)
    assert guided(model, y, 10, 1.0)(x, t).unique() == 3
    assert len(labels) == 1
    assert len(labels[0]) == 4  # scale 1: the unconditional network is not evaluated
    assert guided(model, y, 10, 0.0)(x, t).unique() == 1
    assert guided(model, y, 10, 2.5)(x, t).unique() == 1 + 2.5 * 2
    assert len(labels[-1]) == 8  # any other scale: one batch of both
    within = guided(model, y, 10, 2.5, (3, 5))
    t = torch.tensor([2, 3, 5, 6])
    assert within(x, t).amax((1, 2, 3)).tolist() == [3, 6, 6, 3]
    within(x, t * 10)
    assert len(labels[-1]) == 4  # outside: one evaluation
