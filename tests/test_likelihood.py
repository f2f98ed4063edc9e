"""The bound in the Gaussian world, where p(x_s | x_t) is known and with it what the bound must be.

There p(x_s | x_t) is normal, with the posterior's variance plus what is unknown of x_0: with the
optimal variance the chain is the true reverse process, whatever its grid, and the bound is

    E[L_T + ... - log p(x_0 | x_t1)] = H(x_0) + KL(q(x_T) || N(0, I)),

H the entropy of the 256 values. Both are one-dimensional and written out below.
"""

import math

import pytest
import torch
from gaussian_world import GaussianWorld
from torch.distributions import Normal

from diffusion import (
    Denoiser,
    GaussianDiffusion,
    likelihood,
    make_alphas,
    uniform_grid,
    x0_errors,
)
from diffusion.likelihood import bounds, fit_variance
from diffusion.samplers import ddpm
from diffusion.variance import VARIANCES

M, S = 0.3, 0.1
FIXED = [name for name in VARIANCES if name != "learned"]
LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def process(schedule="cosine", T=200, **choices):
    return GaussianDiffusion(make_alphas(schedule, T), **{"prediction": "eps", **choices})


def network(diffusion, m=M, s=S):
    world = GaussianWorld(diffusion, m, s)
    return lambda x, t, _y: world(x, t)


def images(n=500, seed=100):
    """N(M, S^2) rounded to the values of a pixel, (n, 1, 4, 4); seeds unlike those of the noise."""
    x = M + S * torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (((x + 1) * 127.5).round() / 127.5 - 1).clamp(-1, 1), torch.zeros(n, dtype=torch.long)


def unknown(diffusion):
    """Var(x_0 | x_t) for every t."""
    alpha_bar = diffusion.alpha_bar
    return S**2 * (1 - alpha_bar) / (alpha_bar * S**2 + 1 - alpha_bar)


def true_bits(diffusion):
    """H(x_0) + KL(q(x_T) || N(0, 1)) of one pixel, in bits."""
    pixel = Normal(torch.tensor(M).double(), torch.tensor(S).double())
    p = pixel.cdf(LEVELS + 1 / 255) - pixel.cdf(LEVELS - 1 / 255)
    entropy = -torch.special.xlogy(p, p).sum()
    alpha_bar = diffusion.alpha_bar[-1]
    variance = alpha_bar * S**2 + 1 - alpha_bar
    kl = (variance + alpha_bar * M**2 - 1 - variance.log()) / 2
    return ((entropy + kl) / math.log(2)).item()


def bound(diffusion, steps, model=None, **choices):
    model = model or network(diffusion)
    denoiser = Denoiser(model, diffusion, clip=False, x0_error=unknown(diffusion))
    found = bounds(denoiser, images(), images(seed=101), steps, **choices)
    return {name: parts.summary() for name, parts in found.items()}


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("prediction", ["x0", "v"])
@pytest.mark.parametrize("steps", [1, 2, 7, 50, 199])
def test_the_bound_of_the_true_reverse_process_is_the_entropy(steps, prediction, first):
    diffusion = process(prediction=prediction, first_timestep=first)
    found = bound(diffusion, steps)["optimal"]
    assert found["se"] < 0.04
    assert found["total"] == pytest.approx(true_bits(diffusion), abs=3 * found["se"] + 0.003)


def test_a_prior_that_x_T_does_not_reach_costs_what_it_says():
    """A short schedule, stopped early: L_T is no longer negligible, and the sum is still right."""
    diffusion = GaussianDiffusion(make_alphas("linear", 1000)[:300], prediction="eps")
    found = bound(diffusion, 30, terms=30)["optimal"]
    assert found["prior"] > 0.05
    assert found["total"] == pytest.approx(true_bits(diffusion), abs=3 * found["se"] + 0.003)


def test_the_other_variances_and_a_wrong_network_cost_bits():
    """The control of the laws above."""
    diffusion = process()
    found, wrong = bound(diffusion, 10), bound(diffusion, 10, network(diffusion, m=M + 0.1))
    for name in ("posterior", "beta"):
        assert found[name]["total"] > true_bits(diffusion) + 0.2
    assert wrong["optimal"]["total"] > true_bits(diffusion) + 0.2


def test_beta_reaches_the_entropy_as_steps_become_fine():
    """Continuous time makes the choice of variance indifferent (Ho et al. 2020, Sec. 3.2)."""
    excess = []
    for T in (10, 100, 1000):
        diffusion = process(T=T)
        found = bound(diffusion, T, terms=64)["beta"]
        excess.append(found["total"] - true_bits(diffusion))
    assert excess[0] > 0.5
    assert excess[0] > 3 * excess[1] > 9 * excess[2]
    assert abs(excess[2]) < 0.06


@pytest.mark.parametrize("first", [1, 2])
def test_the_drawn_terms_are_those_of_all_on_average(first):
    diffusion = process(T=60, first_timestep=first)
    steps = 60 - first + 1
    some, every = bound(diffusion, steps, terms=4), bound(diffusion, steps, terms=60)
    for name in FIXED:
        error = 3 * math.hypot(some[name]["se"], every[name]["se"])
        assert some[name]["kl"] == pytest.approx(every[name]["kl"], abs=error)
    assert some["optimal"]["se"] > every["optimal"]["se"]  # drawing costs accuracy
    assert some["optimal"]["kl"] != every["optimal"]["kl"]


class Imperfect:
    """Of two kinds of images, sees one as grey: a network that is wrong by more than noise."""

    def __init__(self, diffusion):
        self.right = GaussianWorld(diffusion, M, S)

    def __call__(self, x, t, y):
        return self.right(x, t) * (1 - 0.5 * y.view(-1, 1, 1, 1))


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 99])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_optimal_variance_never_has_a_worse_bound(schedule, steps):
    """Fitted to the images it is measured on, for a network that is not the ideal one."""
    diffusion = process(schedule, T=100, prediction="v", first_timestep=2)
    x, y = images(1000)
    y = torch.arange(1000) % 2
    model = Imperfect(diffusion)
    denoiser = Denoiser(model, diffusion, x0_error=x0_errors(Denoiser(model, diffusion), (x, y)))
    found = bounds(denoiser, (x, y), (x, y), steps, terms=99)
    found = {name: parts.summary() for name, parts in found.items()}
    assert found["optimal"]["total"] <= min(found[k]["total"] for k in ("posterior", "beta")) + 1e-3


def test_the_measured_errors_are_the_true_ones():
    diffusion = process("linear", T=1000)
    found = x0_errors(Denoiser(network(diffusion), diffusion, clip=False), images(2048))
    ratio = (found / unknown(diffusion))[2:]
    assert found[0] == 0
    assert found.shape == (1001,)
    assert (ratio.log().abs() < 0.2).all()


def test_few_images_give_errors_too():
    diffusion = process()
    for n in (1, 2, 40):
        found = x0_errors(Denoiser(network(diffusion), diffusion), images(n))
        assert found.isfinite().all()
        assert (found[1:] > 0).all()


@pytest.mark.parametrize("steps", [2, 5, 20])
def test_sampling_with_the_optimal_variance_is_exact_in_any_number_of_steps(steps):
    """Every state has the distribution of x_t; with the posterior's variance it is too narrow."""
    diffusion = process(T=100)
    world, g = GaussianWorld(diffusion, M, S), torch.Generator().manual_seed(0)

    def randn():
        return torch.randn(40_000, 1, generator=g)

    grid = uniform_grid(diffusion, steps)
    t = grid[-2]
    spread = {}
    for variance in FIXED:
        options = {"x0_error": unknown(diffusion), "clip": False, "variance": variance}
        states = ddpm(world, diffusion, randn(), grid, randn, **options)
        spread[variance] = list(states)[-2].std() / world.std(t)
    assert spread["optimal"] == pytest.approx(1, abs=0.015)
    assert spread["posterior"] < 0.985 or steps == 2


def test_without_measured_errors_there_is_no_optimal_variance():
    with pytest.raises(ValueError, match="network's errors"):
        VARIANCES["optimal"](process(), 5, 4, None, None)


def test_the_fitted_variance_is_that_of_the_errors():
    x, _ = images()
    for sigma in (0.02, 0.1, 0.4):
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
        fitted = fit_variance(x, x + sigma * noise)
        assert fitted.sqrt().item() == pytest.approx(sigma, rel=0.03)


def test_the_chunks_do_not_matter(monkeypatch):
    diffusion = process()
    whole = bound(diffusion, 20)
    monkeypatch.setattr(likelihood, "CHUNK", 7)
    parts = bound(diffusion, 20)
    for name in FIXED:
        assert parts[name] == pytest.approx(whole[name])
