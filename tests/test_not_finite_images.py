"""An image that is not finite is never written: which step, and from what, is said instead."""

import math

import pytest
import torch

from diffusion import DiffusionModel, GaussianDiffusion, Sampler, generate, make_alphas
from diffusion.samplers import SAMPLERS
from utils.errors import StoppedError

SHAPE = (1, 4, 4)


def model(network, T=20, prediction="v"):
    diffusion = GaussianDiffusion(make_alphas("cosine", T), prediction=prediction)
    return DiffusionModel(network, diffusion, SHAPE, 0, None)


def broken_from(t_broken, value):
    def network(x, t, _y):
        return torch.where(t[0] <= t_broken, torch.full_like(x, value), 0 * x)

    return network


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_step_that_is_not_finite_is_named(sampler, value):
    settings = Sampler(sampler, 10, clip=False)
    step = 3 if sampler == "heun" else 4  # of 16 -> 14 and 14 -> 12
    expected = rf"from step {step} of 10 \(t = 14\) on: the network's"
    with pytest.raises(StoppedError, match=expected):
        generate(model(broken_from(15, value)), settings, range(6), batch_size=4)
    (fine,) = generate(model(broken_from(0, value)), settings, range(6), batch_size=4)  # control
    assert fine.isfinite().all()


def test_a_rise_is_no_step():
    rising = Sampler("heun", 10, restart=1, restart_interval=(0.7, 0.9), churn=9.0, clip=False)
    with pytest.raises(StoppedError, match=r"from step 6 of 12 \(t = 12\) on: the network's"):
        generate(model(broken_from(13, math.nan)), rising, range(6))


def test_a_state_that_is_given_is_looked_at_too():
    x = torch.full((2, *SHAPE), math.nan)
    with pytest.raises(StoppedError, match="given state"):
        generate(model(broken_from(0, 0.0)), Sampler("ddim", 3), range(2), start=10, x=x)
