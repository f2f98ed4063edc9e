"""The learned variance reaches the optimal one; the drawing of t by the size of the loss."""

import math

import pytest
import torch
from gaussian_world import GaussianWorld

from diffusion import (
    Denoiser,
    GaussianDiffusion,
    LossMoments,
    bounds,
    guided,
    make_alphas,
    uniform_grid,
)
from diffusion.importance import BINS, UNIFORM
from diffusion.samplers import ddpm
from diffusion.variance import MIN_VARIANCE, VARIANCES, learned_variance

M, S, T = 0.3, 0.1, 40


def process(**choices) -> GaussianDiffusion:
    options = {"prediction": "v", "learn_variance": True, **choices}
    return GaussianDiffusion(make_alphas("cosine", T), **options)


def unknown(diffusion):
    """Var(x_0 | x_t) for every t."""
    alpha_bar = diffusion.alpha_bar
    return S**2 * (1 - alpha_bar) / (alpha_bar * S**2 + 1 - alpha_bar)


def optimal_v(diffusion):
    """The output that is the optimal variance of the step t -> t - 1, (T + 1,)."""
    t = torch.arange(1, T + 1)
    optimal = VARIANCES["optimal"](diffusion, t, t - 1, unknown(diffusion), None)
    low, high, _ = diffusion.step[:, 1:]
    return torch.cat([torch.zeros(1), 2 * (optimal.log() - low) / (high - low) - 1])


def network(diffusion, v):
    """The Gaussian world's, with this v (T + 1,) in every pixel."""
    world = GaussianWorld(diffusion, M, S)
    return lambda x, t: torch.cat([world(x, t), v[t].view(-1, 1, 1, 1).to(x) + 0 * x], 1)


def images(n):
    x = M + S * torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(100))
    return (((x + 1) * 127.5).round() / 127.5 - 1).clamp(-1, 1)


def test_v_interpolates_in_log_from_the_posterior_to_beta():
    diffusion, v = process(), torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1).double()
    for t, s in ((T, T - 1), (20, 3), (7, 6)):
        low, middle, high = learned_variance(diffusion, t, s, None, v).flatten()
        torch.testing.assert_close(low, diffusion.posterior_variance(t, s))
        torch.testing.assert_close(high, diffusion.step_variance(t, s))
        torch.testing.assert_close(middle, (low * high).sqrt())
    last = learned_variance(diffusion, 1, 0, None, v).flatten()
    assert last[0].item() == pytest.approx(MIN_VARIANCE)


@pytest.mark.parametrize("loss", ["simple", "kl"])
@pytest.mark.parametrize("first", [1, 2])
def test_training_finds_the_optimal_variance(loss, first):
    """At every t, from the loss alone, given the true mean; at the last step that of the bins."""
    diffusion = process(loss=loss, first_timestep=first)
    v = torch.zeros(T + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([v], lr=0.1)
    t = torch.arange(first, T + 1).repeat(5)[: 4 * T]
    g = torch.Generator().manual_seed(0)
    averaged = []
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.1 if step < 150 else 0.01
        x_0, noise = torch.randn(2, len(t), 1, 4, 4, generator=g, dtype=torch.float64)
        x_0 = M + S * x_0
        optimizer.zero_grad()
        diffusion.losses(network(diffusion, v), x_0, t, noise).sum().backward()
        optimizer.step()
        if step >= 200:
            averaged.append(v.detach().clone())
    found, expected = torch.stack(averaged).mean(0), optimal_v(diffusion)
    # near t = T the two ends are one, and v means little
    torch.testing.assert_close(found[3:30], expected[3:30], rtol=0, atol=0.03)
    assert (expected[3:30] - expected[4:31]).abs().max() > 0.03  # control: an index off by one


def test_the_bound_with_the_optimal_v_is_that_of_the_optimal_variance():
    """Of every term, and lower than with another v."""
    diffusion, x_0 = process(), images(300)
    labels = torch.zeros(300, dtype=torch.int64)
    totals = []
    for shift in (0, 0.3, -0.3):
        net = network(diffusion, optimal_v(diffusion) + shift)
        model = Denoiser(lambda x, t, _y, net=net: net(x, t), diffusion, False, unknown(diffusion))
        found = bounds(model, (x_0, labels), (x_0, labels), T, terms=T)
        kl = {name: found[name].summary()["kl"] for name in ("learned", "optimal")}
        totals.append(kl["learned"])
        if not shift:
            assert kl["learned"] == pytest.approx(kl["optimal"], rel=1e-6)
    assert totals[0] < min(totals[1:])  # control


def test_the_parts_of_the_bound_add_up():
    diffusion, x_0 = process(), images(50)
    x_0[:, :, 0], x_0[:, :, 1] = -1, 1
    labels = torch.zeros(50, dtype=torch.int64)
    net = network(diffusion, optimal_v(diffusion))
    model = Denoiser(lambda x, t, _y: net(x, t), diffusion, True, unknown(diffusion))
    for terms in (5, T):
        for bound in bounds(model, (x_0, labels), (x_0, labels), T, terms=terms).values():
            table, summary = bound.table(6), bound.summary()
            assert table["all"]["total"] == pytest.approx(summary["total"])
            assert sum(table["all"].values()) == pytest.approx(2 * summary["total"])
            assert table["decoder"]["total"] == pytest.approx(summary["decoder"])
            assert min(table["all"].values()) > 0


def test_sampling_with_the_learned_variance_is_exact():
    """Every state has the distribution of x_t; with the posterior's variance it is too narrow."""
    diffusion = process()
    net, g = network(diffusion, optimal_v(diffusion)), torch.Generator().manual_seed(0)

    def randn():
        return torch.randn(20_000, 1, 1, 1, generator=g)

    world, grid, spread = GaussianWorld(diffusion, M, S), uniform_grid(diffusion, T), {}
    for variance in ("learned", "posterior"):
        states = ddpm(net, diffusion, randn(), grid, randn, clip=False, variance=variance)
        spread[variance] = list(states)[-2].std() / world.std(1)
    assert spread["learned"] == pytest.approx(1, abs=0.015)
    assert spread["posterior"] < 0.985


def test_a_network_without_it_has_no_learned_variance():
    with pytest.raises(ValueError, match="trained with it"):
        VARIANCES["learned"](process(learn_variance=False), 5, 4, None, None)


def test_guidance_leaves_the_variance_to_the_conditional_network():
    def model(x, _t, y):
        return torch.cat([x * 0 + y.view(-1, 1, 1, 1), x * 0 + 10 * y.view(-1, 1, 1, 1)], 1)

    x, t, y = torch.zeros(2, 1, 2, 2), torch.tensor([5, 5]), torch.tensor([1, 3])
    mean, variance = guided(model, y, 10, 2.0)(x, t).chunk(2, 1)
    assert mean.flatten(1).unique(dim=1).flatten().tolist() == [-8, -4]
    assert variance.flatten(1).unique(dim=1).flatten().tolist() == [10, 30]


def test_guidance_takes_a_network_that_answers_in_bfloat16():
    def model(x, _t, y):
        return (x + y.view(-1, 1, 1, 1)).bfloat16()

    x, t, y = torch.zeros(2, 1, 2, 2), torch.tensor([5, 5]), torch.tensor([1, 3])
    assert guided(model, y, 10, 2.0)(x, t).dtype == torch.float32


# Timesteps in proportion to the size of their losses.


def test_the_density_follows_the_root_mean_square_of_the_losses():
    diffusion = GaussianDiffusion(make_alphas("cosine", 640), first_timestep=11)
    moments, g = LossMoments(640, torch.device("cpu")), torch.Generator().manual_seed(0)

    def scale(t):
        return 1 + 9 * (t > 320)

    uniform = moments.density(diffusion.density)
    torch.testing.assert_close(uniform, diffusion.density)
    for _ in range(600):
        t = torch.randint(11, 641, (64,), generator=g)
        moments.update(moments.of(t, scale(t) * torch.rand(64, generator=g)))
    density = moments.density(diffusion.density)
    assert density.sum().item() == pytest.approx(1)
    assert density[:11].tolist() == [0] * 11
    ratio = (density[321:].mean() - UNIFORM / 630) / (density[11:321].mean() - UNIFORM / 630)
    assert ratio.item() == pytest.approx(10, rel=0.25)

    t, weight = diffusion.sample_timesteps(200_000, g, density)
    assert weight.max() <= 1.001 / UNIFORM
    for function in (lambda t: t / 640, scale):
        truth = function(torch.arange(11, 641)).double().mean()
        torch.testing.assert_close((weight * function(t)).double().mean(), truth, rtol=0.01, atol=0)
    assert scale(t).double().mean() > 1.4 * truth  # control: without the weight


def test_losses_that_are_not_finite_leave_the_moments_as_they_are():
    moments = LossMoments(100, torch.device("cpu"))
    t = torch.tensor([1, 50, 100])
    moments.update(moments.of(t, torch.tensor([math.nan, math.inf, 2.0])))
    assert moments.sums.isfinite().all()
    assert moments.sums[:, 1].sum() == 1
    assert moments.sums[BINS - 1].tolist() == [4, 1]
