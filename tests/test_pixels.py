"""Pixels have 256 values: the likelihood of a bin, and the mean that follows from them."""

import pytest
import torch
from gaussian_world import x0_from
from torch.distributions import Normal

from diffusion import GaussianDiffusion, make_alphas, value_prior
from diffusion.pixels import BIN, FINE, discretised_nll, pixel_mean, pixel_nll

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


@pytest.mark.parametrize("mean", [-2.0, -1.0, 0.1, 0.999, 3.0])
@pytest.mark.parametrize("sigma", [1e-4, 1e-3, 0.1, 2.0])
def test_the_bins_of_a_pixel_sum_to_one(mean, sigma):
    nll = discretised_nll(LEVELS, torch.full((256,), mean), torch.tensor(sigma**2).double())
    assert nll.isfinite().all()
    assert (-nll).exp().sum().item() == pytest.approx(1)


def test_a_bin_is_the_difference_of_the_distribution_function():
    x, mean, sigma = LEVELS[100:110], torch.linspace(-0.3, -0.1, 10).double(), 0.05
    pixel = Normal(mean, torch.tensor(sigma).double())
    expected = (pixel.cdf(x + 1 / 255) - pixel.cdf(x - 1 / 255)).log()
    found = discretised_nll(x, mean, torch.tensor(sigma**2).double())
    torch.testing.assert_close(found, -expected)
    assert not torch.allclose(discretised_nll(x, mean, torch.tensor(0.01)), -expected)  # control


@pytest.mark.parametrize("sigma", [1e-4, 1e-2, 1.0])
def test_the_gradient_of_a_bin_is_finite_however_far_off_the_mean(sigma):
    mean = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).double().repeat(3).requires_grad_()
    variance = torch.full((15,), sigma**2, dtype=torch.float64, requires_grad=True)
    x_0 = torch.tensor([-1.0, 1 / 255, 1.0]).double().repeat_interleave(5)
    discretised_nll(x_0, mean, variance).sum().backward()
    assert mean.grad.isfinite().all()
    assert variance.grad.isfinite().all()
    assert (mean.grad[2::5].sign().tolist()) == [1, -1, -1]  # towards the pixel


def priors():
    """Every value equally likely; a few much likelier than others; some nearly impossible."""
    uniform = torch.zeros(256, dtype=torch.float64)
    peaks = uniform.clone()
    peaks[[0, 200, 253]] = 5.0
    holes = uniform.clone()
    holes[100:106] = -12.0
    return [prior.log_softmax(0) for prior in (uniform, peaks, holes)]


@pytest.mark.parametrize("prior", priors())
@pytest.mark.parametrize("share", [0.02, 0.2, 0.7, 2.0, 2.99])
def test_the_mean_of_a_pixel_is_bayes_rule_over_all_values(share, prior):
    """Also at and beyond the ends; wide ones up to what lies beyond 13 values."""
    sigma = torch.tensor(share * BIN, dtype=torch.float64)
    estimate = torch.linspace(-1.02, 1.02, 3001, dtype=torch.float64)
    weight = (prior - ((LEVELS - estimate[:, None]) / sigma).square() / 2).softmax(1)
    found = pixel_mean(estimate, sigma, prior)
    tolerance = 1e-6 if share < 2 else 0.1 * BIN
    torch.testing.assert_close(found, (weight * LEVELS).sum(1), rtol=0, atol=tolerance)
    assert (found - estimate.clamp(-1, 1)).abs().max() > 0.2 * share * BIN  # control
    assert found.abs().max() <= 1


def test_a_wide_distribution_does_not_know_of_the_values():
    estimate = torch.linspace(-1.5, 1.5, 301, dtype=torch.float64)
    for prior in priors():
        found = pixel_mean(estimate, torch.tensor(FINE, dtype=torch.float64), prior)
        assert torch.equal(found, estimate.clamp(-1, 1))


def test_the_decoder_of_pixels_is_a_distribution_over_their_values():
    """Of every estimate, also one far beyond the ends; likeliest where it should be."""
    for prior in priors():
        for sigma in (0.1 * BIN, BIN, 0.3):
            for located in (-1.5, -1.0, 0.1, 0.99):
                x_0 = LEVELS.view(256, 1, 1, 1).float()
                nll = pixel_nll(x_0, torch.full_like(x_0, located), torch.tensor(sigma), prior)
                assert (-nll).exp().sum().item() == pytest.approx(1, abs=1e-6)
                log_p = prior - ((LEVELS - located) / sigma).square() / 2
                assert (-nll).argmax() == log_p.argmax()


def test_the_prior_is_how_often_a_value_occurs():
    counts = torch.zeros(256)
    counts[[0, 255]] = torch.tensor([900.0, 100.0])
    prior = value_prior(counts)
    assert prior.exp().sum().item() == pytest.approx(1)
    assert (prior[0] - prior[255]).exp().item() == pytest.approx(9)
    assert prior.isfinite().all()


def process(**choices):
    alphas = make_alphas("log-snr", 200)
    options = {"prediction": "x0", "precondition": True, "loss": "kl"}
    return GaussianDiffusion(alphas, **options, **choices)


@pytest.mark.parametrize("t", [1, 60, 199])
def test_a_black_pixel_costs_nothing_below_black_and_is_pushed_there_from_above(t):
    """The gradient is that of a convex loss whose link is the mean of a pixel."""
    x_0, noise = torch.full((5, 1, 1, 1), -1.0).double(), torch.zeros(5, 1, 1, 1).double()
    times, shift = torch.full((5,), t), torch.tensor([-60.0, -20.0, 5.0, 8.0, 20.0]).double()
    gradients, values = [], []
    for diffusion in (process(discrete_pixels=True), process()):
        output = shift.view(-1, 1, 1, 1).clone().requires_grad_()
        losses = diffusion.losses(lambda *_, o=output: o, x_0, times, noise)
        losses.sum().backward()
        gradients.append(output.grad.flatten())
        values.append(losses.detach())
    assert values[0][0] < 1e-4 * values[0][-1]
    assert (gradients[0].diff() >= 0).all()  # convex
    assert 0 <= gradients[0][0] < 0.01 * gradients[0][-1]
    assert values[1][0] > values[1][-1]  # control: without it, below is as wrong as above


def test_only_estimates_of_x_0_are_of_pixels():
    x = torch.linspace(-3, 3, 4).view(4, 1, 1, 1)
    for prediction in ("eps", "v"):
        alphas = make_alphas("cosine", 100)
        plain, other = (
            GaussianDiffusion(alphas, prediction, discrete_pixels=d) for d in (False, True)
        )
        assert torch.equal(x0_from(plain, x, x, 5), x0_from(other, x, x, 5))
