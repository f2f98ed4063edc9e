"""The process: its closed forms against Bayes' rule, its losses against the original's text."""

import pytest
import torch
from gaussian_world import x0_from

from diffusion import LOSSES, PREDICTIONS, SCHEDULES, GaussianDiffusion, make_alphas

T = 1000


def process(schedule="linear", **choices) -> GaussianDiffusion:
    return GaussianDiffusion(make_alphas(schedule, T), **choices)


def batch(n=4):
    g = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, n, 1, 5, 5, generator=g, dtype=torch.float64)
    return x_0.clamp(-1, 1), noise


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_clean_image_is_t_0(schedule):
    diffusion = process(schedule)
    assert diffusion.alpha_bar[0] == 1
    assert diffusion.alpha[0] == 1
    assert len(diffusion.alpha_bar) == T + 1
    assert diffusion.alpha_bar.dtype == torch.float64
    assert (diffusion.alpha_bar.diff() < 0).all()
    x_0, noise = batch()
    assert torch.equal(diffusion.q_sample(x_0, 0, noise), x_0)
    assert not torch.equal(diffusion.q_sample(x_0, 1, noise), x_0)  # control


def test_alpha_bar_is_the_product():
    diffusion = process()
    assert diffusion.alpha_bar[1].item() == pytest.approx(1 - 1e-4, abs=1e-15)
    torch.testing.assert_close(diffusion.alpha_bar[7], diffusion.alpha[1:8].prod())


def test_one_jump_is_many_steps():
    """Applying q(x_t | x_{t-1}) again and again has the mean and variance of q(x_t | x_0)."""
    diffusion, mean, variance = process(), 1.0, 0.0
    for t in range(1, 301):
        alpha = diffusion.alpha[t].item()
        mean, variance = alpha**0.5 * mean, alpha * variance + 1 - alpha
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    assert diffusion.q_sample(one, 300, zero).item() == pytest.approx(mean)
    assert diffusion.q_sample(zero, 300, one).item() ** 2 == pytest.approx(variance)
    assert diffusion.q_sample(one, 299, zero).item() != pytest.approx(mean)  # control


def test_noise_added_from_t_on_leads_to_q_of_the_later_t():
    """q(x_s | x_t) after q(x_t | x_0) has the mean and variance of q(x_s | x_0), s > t."""
    diffusion = process()
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for t, s in ((1, 2), (100, 300), (500, 510), (0, 500)):
        mean = diffusion.renoise(diffusion.q_sample(one, t, zero), t, s, zero)
        parts = diffusion.renoise(diffusion.q_sample(zero, t, one), t, s, zero)
        variance = parts**2 + diffusion.renoise(zero, t, s, one) ** 2
        torch.testing.assert_close(mean, diffusion.q_sample(one, s, zero))
        torch.testing.assert_close(variance, diffusion.q_sample(zero, s, one) ** 2)
        assert not torch.allclose(variance, diffusion.q_sample(zero, s - 1, one) ** 2)  # control


@pytest.mark.parametrize(("t", "s"), [(1, 0), (2, 1), (500, 499), (1000, 999), (1000, 3), (7, 0)])
def test_the_posterior_is_bayes_rule(t, s):
    """q(x_s | x_t, x_0) is the product of N(x_s; a x_0, b) and N(x_t; c x_s, d), normalized."""
    diffusion, (x_0, x_t) = process(), batch()
    jump = diffusion.alpha[s + 1 : t + 1].prod()
    prior_mean, prior_variance = diffusion.alpha_bar[s].sqrt() * x_0, 1 - diffusion.alpha_bar[s]
    gain = prior_variance * jump.sqrt() / (jump * prior_variance + 1 - jump)
    expected_mean = prior_mean + gain * (x_t - jump.sqrt() * prior_mean)
    expected_variance = prior_variance * (1 - gain * jump.sqrt())
    mean, variance = diffusion.posterior(x_0, x_t, t, s)
    torch.testing.assert_close(mean, expected_mean)
    torch.testing.assert_close(variance.squeeze(), expected_variance, rtol=1e-6, atol=1e-15)
    if s > 0:
        shifted, _ = diffusion.posterior(x_0, x_t, t, s - 1)
        with pytest.raises(AssertionError):
            torch.testing.assert_close(shifted, expected_mean)  # control: an index off by one


def test_the_posterior_is_the_original_text():
    diffusion, (x_0, x_t) = process(), batch()
    for t in (1, 2, 10, T):
        a, ab, before = diffusion.alpha[t], diffusion.alpha_bar[t], diffusion.alpha_bar[t - 1]
        mu = (a.sqrt() * (1 - before) * x_t + before.sqrt() * (1 - a) * x_0) / (1 - ab)
        sigma2 = (1 - a) * (1 - before) / (1 - ab)
        mean, variance = diffusion.posterior(x_0, x_t, t, t - 1)
        torch.testing.assert_close(mean, mu)
        torch.testing.assert_close(variance.squeeze(), sigma2)


def test_the_posterior_takes_one_t_per_image():
    diffusion, (x_0, x_t) = process(), batch()
    t = torch.tensor([1, 2, 500, 1000])
    means, variances = diffusion.posterior(x_0, x_t, t, t - 1)
    for i, n in enumerate(t.tolist()):
        mean, variance = diffusion.posterior(x_0[i : i + 1], x_t[i : i + 1], n, n - 1)
        torch.testing.assert_close(means[i : i + 1], mean)
        torch.testing.assert_close(variances[i].flatten(), variance.flatten())


def test_a_preconditioned_answer_is_the_image_in_units_of_the_noise():
    """With F = -v it is exact: a x_t - b v = x_0. Its loss is that of the plain x_0."""
    plain = process(prediction="x0", loss="kl")
    diffusion, v = process(prediction="x0", precondition=True, loss="kl"), process(prediction="v")
    x_0, noise = batch()
    t = torch.tensor([1, 10, 50, 100])
    x_t = diffusion.q_sample(x_0, t, noise)
    F = -v.target(x_0, noise, t)
    torch.testing.assert_close(x0_from(diffusion, F, x_t, t), x_0)
    assert not torch.allclose(x0_from(plain, F, x_t, t), x_0)  # control

    off = F + 0.1
    losses = diffusion.losses(lambda *_: off, x_0, t, noise)
    answer = x0_from(diffusion, off, x_t, t)
    torch.testing.assert_close(losses, plain.losses(lambda *_: answer, x_0, t, noise))


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_only_the_image_is_preconditioned(prediction):
    x_t, output = batch()
    plain, other = (process(prediction=prediction, precondition=p) for p in (False, True))
    assert torch.equal(x0_from(plain, output, x_t, 5), x0_from(other, output, x_t, 5))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_gives_the_image_and_the_noise(prediction):
    diffusion, (x_0, noise) = process(prediction=prediction), batch()
    t = torch.tensor([1, 10, 500, 990])
    x_t = diffusion.q_sample(x_0, t, noise)
    output = diffusion.target(x_0, noise, t)
    torch.testing.assert_close(x0_from(diffusion, output, x_t, t), x_0)
    torch.testing.assert_close(diffusion.predict_noise(x_0, x_t, t), noise)
    other = process(prediction="eps" if prediction != "eps" else "v")
    with pytest.raises(AssertionError):
        torch.testing.assert_close(x0_from(other, output, x_t, t), x_0)  # control


@pytest.mark.parametrize("source", PREDICTIONS)
@pytest.mark.parametrize("goal", PREDICTIONS)
def test_predictions_convert_into_each_other(source, goal):
    (x_0, noise), t = batch(), torch.tensor([3, 40, 400, 900])
    first, second = process(prediction=source), process(prediction=goal)
    x_t = first.q_sample(x_0, t, noise)
    guess = first.target(x_0, noise, t) + 0.1 * noise  # any output, not only the right one
    image = x0_from(first, guess, x_t, t)
    converted = second.target(image, first.predict_noise(image, x_t, t), t)
    torch.testing.assert_close(x0_from(second, converted, x_t, t), image)


def mu_form(diffusion, output, x_0, x_t, t):
    """|mu_target - mu_prediction|^2 / (2 sigma^2(t)), as the original writes it."""
    mu_target, sigma2 = diffusion.posterior(x_0, x_t, t, t - 1)
    mu_prediction, _ = diffusion.posterior(x0_from(diffusion, output, x_t, t), x_t, t, t - 1)
    return ((mu_target - mu_prediction).square() / (2 * sigma2)).flatten(1).mean(1)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_kl_loss_is_the_mu_form(prediction, schedule):
    diffusion = process(schedule, prediction=prediction, loss="kl")
    (x_0, noise), t = batch(5), torch.tensor([2, 3, 50, 500, 1000])
    x_t = diffusion.q_sample(x_0, t, noise)
    output = diffusion.target(x_0, noise, t) + 0.05
    expected = mu_form(diffusion, output, x_0, x_t, t)
    losses = diffusion.losses(lambda *_: output, x_0, t, noise)
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)
    unweighted = process(schedule, prediction=prediction, loss="simple")
    plain = unweighted.losses(lambda *_: output, x_0, t, noise)
    assert not torch.allclose(plain, expected, rtol=0.1)  # control


def test_the_kl_weight_is_half_the_drop_of_the_signal_to_noise_ratio():
    diffusion = process(prediction="x0", loss="kl")
    t = torch.arange(2, T + 1)
    drop = diffusion.snr(t - 1) - diffusion.snr(t)
    torch.testing.assert_close(diffusion.loss_weight[2:], drop / 2)
    at_one = 1 / (2 * diffusion.posterior_variance(2, 1))  # there x_0 has weight one in the mean
    torch.testing.assert_close(diffusion.loss_weight[1], at_one)
    assert diffusion.loss_weight[1] > diffusion.loss_weight[2]


def test_min_snr_is_capped_in_units_of_x_0():
    (x_0, noise), t = batch(), torch.tensor([5, 50, 300, 900])
    for prediction in PREDICTIONS:
        diffusion = process(prediction=prediction, loss="min-snr")
        x_t = diffusion.q_sample(x_0, t, noise)
        output = diffusion.target(x_0, noise, t) + 0.02
        error = (x0_from(diffusion, output, x_t, t) - x_0).square().flatten(1).mean(1)
        expected = diffusion.snr(t).clamp(max=5) * error
        losses = diffusion.losses(lambda *_, o=output: o, x_0, t, noise)
        torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_right_answer_has_loss_zero(loss, prediction):
    diffusion, (x_0, noise) = process(prediction=prediction, loss=loss), batch()
    t = torch.tensor([1, 2, 500, 1000])
    right = diffusion.target(x_0, noise, t)
    assert diffusion.losses(lambda *_: right, x_0, t, noise).count_nonzero() == 0
    assert (diffusion.losses(lambda *_: right + 1, x_0, t, noise) > 0).all()  # control


def test_a_network_that_answers_zero_has_simple_loss_one():
    diffusion, g = process(prediction="eps"), torch.Generator().manual_seed(0)
    x_0, noise = torch.zeros(256, 1, 28, 28), torch.randn(256, 1, 28, 28, generator=g)
    t, _ = diffusion.sample_timesteps(256, g)
    losses = diffusion.losses(lambda x, _: torch.zeros_like(x), x_0, t, noise)
    assert losses.mean().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("first", [1, 2, 17])
def test_timesteps_are_uniform_from_the_first_to_T(first):
    diffusion = GaussianDiffusion(make_alphas("cosine", 20), first_timestep=first)
    g = torch.Generator().manual_seed(0)
    t = torch.cat([diffusion.sample_timesteps(7, g)[0] for _ in range(6000)])
    counts = t.bincount(minlength=21)
    assert counts[:first].sum() == 0
    share = counts[first:] / len(t) * (21 - first)
    torch.testing.assert_close(share, torch.ones(21 - first), rtol=0.05, atol=0)


def test_a_batch_sees_all_of_t():
    diffusion, g = process(), torch.Generator().manual_seed(0)
    for _ in range(20):
        t, weight = diffusion.sample_timesteps(10, g)
        torch.testing.assert_close(weight, torch.ones(10))
        assert ((t - 1) // 100).tolist() == list(range(10))


@pytest.mark.parametrize("first", [1, 2])
def test_drawing_t_unevenly_does_not_change_the_mean_of_the_loss(first):
    diffusion, g = process("cosine", loss="kl", first_timestep=first), torch.Generator()
    t, weight = diffusion.sample_timesteps(1_000_000, g.manual_seed(0))
    assert t.min() == first
    assert t.max() == T
    assert weight.max() < 2.001
    for function in (lambda t: t / T, lambda t: 1 / t, lambda t: (t > 700).double()):
        truth = function(torch.arange(first, T + 1).double()).mean()
        torch.testing.assert_close((weight * function(t.double())).mean(), truth, rtol=1e-2, atol=0)
    assert (t > 700).double().mean() < 0.8 * truth  # control: without the weight
    assert diffusion.density.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("first", [0, T + 1])
def test_a_first_timestep_outside_is_refused(first):
    with pytest.raises(ValueError, match=r"1\.\.1000"):
        process(first_timestep=first)
