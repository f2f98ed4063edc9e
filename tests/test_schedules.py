"""Schedules against their papers."""

import math

import pytest
import torch

from diffusion import SCHEDULES, make_alphas


def test_linear_has_the_constants_of_the_paper():
    betas = 1 - make_alphas("linear", 1000)
    assert betas[0] == pytest.approx(1e-4)
    assert betas[-1] == pytest.approx(0.02)
    torch.testing.assert_close(betas.diff(), torch.full((999,), (0.02 - 1e-4) / 999).double())


def test_linear_ends_in_the_same_noise_for_any_length():
    ends = [make_alphas("linear", T).log().sum() for T in (200, 1000, 4000)]
    torch.testing.assert_close(ends[0], ends[1], rtol=0.06, atol=0)
    torch.testing.assert_close(ends[2], ends[1], rtol=0.02, atol=0)


@pytest.mark.parametrize("timesteps", [2, 10, 20])
def test_linear_refuses_a_length_at_which_a_beta_reaches_one(timesteps):
    with pytest.raises(ValueError, match="at least 21"):
        make_alphas("linear", timesteps)
    assert make_alphas("linear", 21).min() > 0


def test_cosine_is_its_formula():
    T, s = 1000, 0.008
    f = [math.cos((t / T + s) / (1 + s) * math.pi / 2) ** 2 for t in range(T + 1)]
    alpha_bar = make_alphas("cosine", T).cumprod(0)
    expected = torch.tensor(f[1:-1], dtype=torch.float64) / f[0]
    torch.testing.assert_close(alpha_bar[:-1], expected)
    assert 1 - make_alphas("cosine", T)[-1] == pytest.approx(0.999)  # clipped, Sec. 3.2


def test_sigmoid_is_its_formula():
    T = 100
    falling = [1 / (1 + math.exp(-3 + 6 * t / T)) for t in range(T + 1)]
    expected = [(f - falling[T]) / (falling[0] - falling[T]) for f in falling[1:-1]]
    alpha_bar = make_alphas("sigmoid", T).cumprod(0)[:-1]
    torch.testing.assert_close(alpha_bar, torch.tensor(expected, dtype=torch.float64))


def test_log_snr_is_a_line_between_its_ends():
    alpha_bar = make_alphas("log-snr", 50, (), (9.0, -4.0)).cumprod(0)
    expected = torch.linspace(9, -4, 50, dtype=torch.float64)
    torch.testing.assert_close(alpha_bar.logit(), expected)
    torch.testing.assert_close(
        make_alphas("log-snr", 50).cumprod(0).logit()[[0, -1]],
        torch.tensor([13.3, -5.0], dtype=torch.float64),
    )


@pytest.mark.parametrize("ends", [(1.0, 2.0), (1.0, 1.0), (1.0,), (3.0, 2.0, 1.0)])
def test_ends_of_log_snr_that_cannot_be_are_refused(ends):
    with pytest.raises(ValueError, match="--log-snr"):
        make_alphas("log-snr", 50, (), ends)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_zero_terminal_snr_is_zero_exactly_and_keeps_the_first_step(schedule):
    plain, zero = (make_alphas(schedule, 100, zero_terminal=z).cumprod(0) for z in (False, True))
    assert zero[-1] == 0
    assert plain[-1] > 0  # control
    torch.testing.assert_close(zero[0], plain[0])
    signal, shifted = plain.sqrt(), zero.sqrt()
    torch.testing.assert_close(  # Lin et al. 2024, Algorithm 1
        shifted, (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    )


def test_a_list_may_end_in_nothing_but_noise():
    assert make_alphas("manual", 2, (0.9, 0.0)).prod() == 0
    with pytest.raises(ValueError, match="between 0 and 1"):
        make_alphas("manual", 3, (0.9, 0.0, 0.5))


def test_a_list_whose_product_vanishes_before_the_end_is_refused():
    with pytest.raises(ValueError, match="vanishes at t = 866 of 1000"):
        make_alphas("manual", 1000, (0.45,) * 1000)
    assert make_alphas("manual", 800, (0.45,) * 800).prod() > 0  # control


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("timesteps", [25, 1000])
def test_every_schedule_destroys_the_image_step_by_step(schedule, timesteps):
    alphas = make_alphas(schedule, timesteps)
    assert alphas.shape == (timesteps,)
    assert alphas.dtype == torch.float64
    assert ((alphas > 0) & (alphas < 1)).all()
    assert alphas.prod() < 0.01


def test_alphas_can_be_set_by_hand():
    assert make_alphas("manual", 3, (0.9, 0.8, 0.7)).tolist() == [0.9, 0.8, 0.7]


@pytest.mark.parametrize(
    ("schedule", "timesteps", "alphas", "message"),
    [
        ("manual", 3, (0.9, 0.8), "2 values for 3"),
        ("manual", 2, (0.9, 1.0), "between 0 and 1"),
        ("manual", 2, (0.9, float("nan")), "between 0 and 1"),
        ("cosine", 2, (0.9, 0.8), "no effect"),
    ],
)
def test_lists_that_cannot_be_are_refused(schedule, timesteps, alphas, message):
    with pytest.raises(ValueError, match=message):
        make_alphas(schedule, timesteps, alphas)
