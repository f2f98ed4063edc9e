"""The held-out loss depends on the weights alone."""

import torch

from diffusion import GaussianDiffusion, HeldOut, held_out_losses, make_alphas


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
