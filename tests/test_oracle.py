"""The schedulers of diffusers as an independent opinion; their index is our t - 1."""

import pytest
import torch
from gaussian_world import x0_from

from diffusion import SPACINGS, GaussianDiffusion, last, make_alphas, uniform_grid
from diffusion.samplers import ddim, ddpm, dpmpp, heun, unipc

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


def network(x, t):
    """An estimate of x_0 in [-1, 1]."""
    return 0.9 * torch.tanh(x - t.view(-1, 1, 1, 1) / 4000)


def solved_by(scheduler, x_T, noise=None):
    """The images of a scheduler with this network, whose estimates are not clipped."""
    x = x_T * scheduler.init_noise_sigma
    more = {} if noise is None else {"generator": noise}
    for index in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, index), torch.full((3,), int(index) + 1))
        x = scheduler.step(output, index, x, **more).prev_sample
    return x


SOLVERS = {
    "heun": (heun, {}, "HeunDiscreteScheduler", {"beta_start": 1e-4, "beta_end": 0.02}),
    "dpmpp": (dpmpp, {}, "DPMSolverMultistepScheduler", {"final_sigmas_type": "zero"}),
    "dpmpp sde": (
        dpmpp,
        {"eta": 1.0},
        "DPMSolverMultistepScheduler",
        {"final_sigmas_type": "zero", "algorithm_type": "sde-dpmsolver++"},
    ),
    "unipc 2": (unipc, {"order": 2}, "UniPCMultistepScheduler", {"final_sigmas_type": "zero"}),
    "unipc 3": (
        unipc,
        {"order": 3},
        "UniPCMultistepScheduler",
        {"final_sigmas_type": "zero", "solver_order": 3},
    ),
}


@pytest.mark.parametrize("steps", [2, 3, 10])
@pytest.mark.parametrize("name", SOLVERS)
def test_a_trajectory_of_every_solver_agrees(name, steps):
    sampler, options, kind, own = SOLVERS[name]
    diffusion = GaussianDiffusion(make_alphas("linear", T), "x0")
    scheduler = theirs(kind, "linear", "x0", timestep_spacing="trailing", **own)
    scheduler.set_timesteps(steps)
    x_T = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    noise = torch.Generator().manual_seed(1)
    x = solved_by(scheduler, x_T, noise if options.get("eta") else None)

    def solved(steps, sampler=sampler, **options):
        noise = torch.Generator().manual_seed(1)
        grid, randn = (
            uniform_grid(diffusion, steps),
            lambda: torch.randn(3, 1, 4, 4, generator=noise),
        )
        return last(sampler(network, diffusion, x_T, grid, randn, clip=False, **options))

    torch.testing.assert_close(solved(steps, **options), x, rtol=0, atol=1e-4)
    assert not torch.allclose(solved(steps + 1, **options), x, rtol=0, atol=1e-4)  # controls
    assert not torch.allclose(solved(steps, ddim), x, rtol=0, atol=1e-4) or steps == 2
    if name == "unipc 3" and steps > 3:
        assert not torch.allclose(solved(steps, order=2), x, rtol=0, atol=1e-4)


def test_dpmpp_between_its_ends_is_that_of_k_diffusion():
    """sample_dpmpp_2m_sde (midpoint) of k-diffusion 0.1.1, written out; eta = 0.7."""
    diffusion, eta = GaussianDiffusion(make_alphas("linear", T), "x0"), 0.7
    grid = uniform_grid(diffusion, 8)
    alpha_bar = diffusion.alpha_bar[grid]
    sigma, g = ((1 - alpha_bar) / alpha_bar).sqrt(), torch.Generator().manual_seed(0)
    noises = [torch.randn(3, 1, 4, 4, generator=g, dtype=torch.float64) for _ in grid]
    x, before = noises[0] / alpha_bar[0].sqrt(), None
    for i, t in enumerate(grid[:-1]):
        denoised = network(x * alpha_bar[i].sqrt(), torch.full((3,), t))
        if sigma[i + 1] == 0:
            x = denoised
            continue
        h = sigma[i].log() - sigma[i + 1].log()
        x = sigma[i + 1] / sigma[i] * (-eta * h).exp() * x - (-h - eta * h).expm1() * denoised
        if before is not None:
            r = (sigma[i - 1].log() - sigma[i].log()) / h
            x = x - 0.5 * (-h - eta * h).expm1() / r * (denoised - before)
        x = x + noises[i + 1] * sigma[i + 1] * (-(-2 * eta * h).expm1()).sqrt()
        before = denoised
    found = []
    for own in (eta, 0.6):
        left = iter(noises[1:])
        states = dpmpp(
            network, diffusion, noises[0], grid, lambda left=left: next(left), clip=False, eta=own
        )
        found.append(last(states))
    torch.testing.assert_close(found[0], x, rtol=0, atol=1e-9)
    assert not torch.allclose(found[1], x, rtol=0, atol=1e-4)  # control


@pytest.mark.parametrize(
    ("spacing", "options"),
    [("karras", {"use_karras_sigmas": True}), ("log-snr", {"use_exponential_sigmas": True})],
)
def test_spacings_agree(spacing, options):
    """Where sigma_T is less than EDM's, from which ours begin."""
    alphas = make_alphas("log-snr", T, ends=(6.0, -5.0))  # theirs are float32
    diffusion = GaussianDiffusion(alphas)
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.UniPCMultistepScheduler(
        T, trained_betas=(1 - alphas).tolist(), final_sigmas_type="zero", **options
    )
    for steps in (5, 18):
        scheduler.set_timesteps(steps)
        theirs = scheduler.timesteps + 1
        ours = torch.tensor(SPACINGS[spacing](diffusion, steps, None)[:-1])
        assert (ours - theirs).abs().max() <= 1  # they round in float32, or down
        assert (
            torch.tensor(uniform_grid(diffusion, steps)[:-1]) - theirs
        ).abs().max() > 1  # control
