"""The held-out loss depends on the weights alone."""

from types import SimpleNamespace

import pytest
import torch

from diffusion import GaussianDiffusion, HeldOut, held_out_losses, make_alphas, repeated
from diffusion.held_out import LEAST
from training.validate import update_best


def test_the_same_points_every_time_over_all_t():
    diffusion = GaussianDiffusion(make_alphas("cosine", 100), first_timestep=2)
    x_0, y = torch.zeros(300, 1, 4, 4), torch.arange(300)
    torch.manual_seed(0)
    first = HeldOut.of(x_0, y, diffusion)
    torch.manual_seed(1)
    second = HeldOut.of(x_0, y, diffusion)
    assert torch.equal(first.noise, second.noise)
    assert (first.t[0], first.t[-1]) == (2, 100)
    assert set(first.t.tolist()) == set(range(2, 101))


def test_it_is_the_training_loss_at_every_point_with_its_own_label():
    diffusion = GaussianDiffusion(make_alphas("cosine", 100), prediction="eps")
    points = HeldOut.of(torch.zeros(300, 1, 4, 4), torch.arange(300), diffusion)

    def model(x, t, y):
        return x * y.view(-1, 1, 1, 1) / 300 + t.view(-1, 1, 1, 1) / 100

    expected = diffusion.losses(
        lambda x, t: model(x, t, points.y), points.x_0, points.t, points.noise
    )
    torch.testing.assert_close(held_out_losses(model, diffusion, points), expected)


@pytest.mark.parametrize("images", [1, 9, 90, 255])
def test_few_images_cover_every_part_of_1_to_T_and_each_of_them_meets_all_of_it(images):
    diffusion = GaussianDiffusion(make_alphas("cosine", 1000))
    numbers = torch.arange(images)
    points = HeldOut.of(numbers.float().view(-1, 1, 1, 1), numbers, diffusion)
    assert len(points.t) >= LEAST
    assert points.y.bincount().unique().tolist() == [len(points.t) // images]
    assert torch.equal(points.x_0.flatten().long(), points.y)
    quarters = ((points.t - 1) * 4 // 1000).bincount()
    assert (quarters - len(points.t) / 4).abs().max() <= 1
    first = points.t[points.y == 0]
    assert first.min() == 1
    assert first.max() > 500
    assert len({tuple(row.tolist()) for row in points.noise.flatten(1)}) == len(points.t)


def test_enough_images_are_not_repeated_and_none_are_refused():
    enough = torch.randn(LEAST, 1, 2, 2), torch.arange(LEAST)
    assert all(torch.equal(a, b) for a, b in zip(repeated(*enough), enough, strict=True))
    assert len(repeated(enough[0][1:], enough[1][1:])[0]) == 2 * (LEAST - 1)  # control
    with pytest.raises(ValueError, match="no images"):
        repeated(enough[0][:0], enough[1][:0])


@pytest.mark.parametrize("images", [90, 300, 1024])
def test_every_beginning_of_the_spread_points_covers_all_t_evenly(images):
    diffusion = GaussianDiffusion(make_alphas("cosine", 1000))
    x_0 = torch.arange(images).float().view(-1, 1, 1, 1)
    points = HeldOut.of(x_0, torch.arange(images), diffusion)
    spread = points.low_discrepancy_order()
    assert sorted(spread.t.tolist()) == points.t.tolist()
    by_point = {(y, t): noise for y, t, noise in zip(*map(list, rows(points)), strict=True)}
    assert all(by_point[y, t] == noise for y, t, noise in zip(*rows(spread), strict=True))
    for n in (64, 128, 256):
        quarters = ((spread[:n].t - 1) * 4 // 1000).bincount(minlength=4)
        assert (quarters - n / 4).abs().max() <= 3
    first = points[:64].t
    assert ((first - 1) * 4 // 1000).max() < 3  # control: the beginning as it was


def rows(points: HeldOut) -> tuple[list, list, list]:
    return points.y.tolist(), points.t.tolist(), points.noise.flatten().tolist()


def test_two_steps_are_compared_at_the_points_that_both_were_measured_at():
    """A loss of few points says nothing of one of many."""
    state = SimpleNamespace(step=200, best=None)
    hard, easy = torch.full((64,), 0.5), torch.full((64,), 0.1)
    update_best(state, hard)
    assert state.best == {"step": 200, "loss": 0.5, "points": 64}
    state.step = 400
    update_best(state, torch.cat([hard + 0.1, easy]))  # a lower mean, and worse at every point
    assert state.best["step"] == 200
    state.step = 600
    update_best(state, torch.cat([hard - 0.1, easy]))
    assert state.best == {"step": 600, "loss": pytest.approx(0.25), "points": 128}
    state.best = {"step": 1, "loss": 0.2}  # of an earlier release
    update_best(state, torch.full((1024,), 0.1))
    assert state.best["step"] == 600
