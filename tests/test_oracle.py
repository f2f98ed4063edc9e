"""The schedulers of diffusers as an independent opinion; their index is our t - 1."""

import pytest
import torch
from gaussian_world import x0_from

from diffusion import GaussianDiffusion, make_alphas, uniform_grid
from diffusion.samplers import ddim, ddpm

T = 1000
PREDICTION = {"x0": "sample", "eps": "epsilon", "v": "v_prediction"}


def theirs(kind, schedule="linear", prediction="eps", **options):
    """A scheduler of diffusers; imported here, as that takes seconds."""
    diffusers = pytest.importorskip("diffusers")
    name = {"linear": "linear", "cosine": "squaredcos_cap_v2"}[schedule]
    return getattr(diffusers, kind)(
        T, beta_schedule=name, prediction_type=PREDICTION[prediction], **options
    )


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedules_agree(schedule):
    ours = GaussianDiffusion(make_alphas(schedule, T)).alpha_bar[1:].float()
    other = theirs("DDPMScheduler", schedule).alphas_cumprod
    torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTION)
@pytest.mark.parametrize("t", [1, 2, 500, 1000])
def test_a_ddpm_step_agrees(prediction, t):
    ours = GaussianDiffusion(make_alphas("linear", T), prediction)
    scheduler = theirs("DDPMScheduler", "linear", prediction, variance_type="fixed_small")
    g = torch.Generator().manual_seed(0)
    x, output = torch.randn(2, 3, 1, 4, 4, generator=g)
    x_0 = x0_from(ours, output, x, t).clamp(-1, 1)
    mean, variance = ours.posterior(x_0, x, t, t - 1)
    step = scheduler.step(output, t - 1, x, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(step.pred_original_sample, x_0, rtol=1e-3, atol=1e-3)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) if t > 1 else 0
    expected = mean + variance.sqrt() * noise
    torch.testing.assert_close(step.prev_sample, expected, rtol=1e-3, atol=2e-3)


def test_a_ddim_trajectory_agrees():
    diffusion = GaussianDiffusion(make_alphas("linear", T), "eps")
    scheduler = theirs("DDIMScheduler", timestep_spacing="trailing", set_alpha_to_one=True)
    scheduler.set_timesteps(10)
    g = torch.Generator().manual_seed(0)
    x_T = torch.randn(3, 1, 4, 4, generator=g)

    def network(x, t):
        return 0.5 * torch.tanh(x) + t.view(-1, 1, 1, 1) / 4000

    x = x_T
    for index in scheduler.timesteps:
        output = network(x, torch.full((3,), int(index) + 1))
        x = scheduler.step(output, index, x, use_clipped_model_output=True).prev_sample
    ours = list(ddim(network, diffusion, x_T, uniform_grid(diffusion, 10), torch.Tensor))[-1]
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3)
    other = list(ddim(network, diffusion, x_T, uniform_grid(diffusion, 11), torch.Tensor))[-1]
    assert not torch.allclose(other, x, rtol=1e-3, atol=1e-3)  # control


def test_a_ddpm_chain_of_ten_steps_agrees():
    diffusion = GaussianDiffusion(make_alphas("linear", T), "eps")
    scheduler = theirs("DDPMScheduler", timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    g = torch.Generator().manual_seed(0)
    x_T = torch.randn(3, 1, 4, 4, generator=g)
    x, random = x_T, torch.Generator().manual_seed(1)
    for index in scheduler.timesteps:
        x = scheduler.step(0.5 * torch.tanh(x), index, x, generator=random).prev_sample
    random = torch.Generator().manual_seed(1)
    states = ddpm(
        lambda x, _: 0.5 * torch.tanh(x),
        diffusion,
        x_T,
        uniform_grid(diffusion, 10),
        lambda: torch.randn(x_T.shape, generator=random),
    )
    torch.testing.assert_close(list(states)[-1], x, rtol=1e-3, atol=2e-3)
