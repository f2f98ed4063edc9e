"""Editing in Gaussian worlds, where the right answer is known: moments, orders, decisions."""

import math

import pytest
import torch
from gaussian_world import GaussianWorld

from diffusion import (
    DiffusionModel,
    GaussianDiffusion,
    Sampler,
    classify_images,
    generate,
    make_alphas,
)
from diffusion.editing import (
    Blend,
    Inpainting,
    Inversion,
    Repaint,
    is_deterministic,
    noise_level,
    repaint_grid,
    slerp,
    start_of,
)
from utils.images import normalize, to_uint8

M, S = 0.2, 0.5  # of a pixel
RHO = 0.9  # between the pixels of a pair


def process(T=200, schedule="linear", **choices) -> GaussianDiffusion:
    return GaussianDiffusion(make_alphas(schedule, T), **choices)


def model_of(network, diffusion, shape, num_classes=0, x0_error=None) -> DiffusionModel:
    return DiffusionModel(network, diffusion, shape, num_classes, x0_error)


# Inpainting: pairs of pixels, one of which is known.


def pairs(diffusion, count):
    """The ideal network for an image of so many pairs (1, count, 2), N(M, S^2) with RHO within."""
    covariance = S**2 * torch.tensor([[1, RHO], [RHO, 1]], dtype=torch.float64)

    def network(x, t, _y):
        alpha_bar = diffusion.alpha_bar[int(t[0])]
        of_x_t = alpha_bar * covariance + (1 - alpha_bar) * torch.eye(2, dtype=torch.float64)
        gain = alpha_bar.sqrt() * covariance @ of_x_t.inverse()
        return (M + (x.double() - alpha_bar.sqrt() * M) @ gain.T).to(x.dtype)

    return model_of(network, diffusion, (1, count, 2))


def filled_in(resample, known=0.9, count=2_000):
    """The second pixels of pairs whose first one is known."""
    diffusion = process(1000, prediction="x0")
    model = pairs(diffusion, count)
    x_0 = torch.full((1, 1, count, 2), known)
    unknown = torch.tensor([False, True]).expand(1, 1, count, 2)
    basis = (model.network, diffusion, model.image_shape, 0, None)
    sampler = Repaint("ddpm", 100, "log-snr", clip=False, jump=10, resample=resample)
    (found,) = generate(Inpainting(*basis, x_0, unknown), sampler, range(1))
    assert (found[..., 0] == known).all()
    return found[..., 1]


def test_inpainting_returns_the_conditional_moments():
    expected = M + RHO * (0.9 - M)
    x = filled_in(resample=20)
    assert x.mean().item() == pytest.approx(expected, abs=0.02)
    assert x.std().item() == pytest.approx(S * math.sqrt(1 - RHO**2), rel=0.08)


def test_without_resampling_it_does_not():
    """The control of the test above."""
    x = filled_in(resample=1)
    assert x.mean().item() < M + RHO * (0.9 - M) - 0.1
    assert x.std().item() > 1.1 * S * math.sqrt(1 - RHO**2)


def test_known_pixels_are_equal_to_the_byte():
    diffusion = process(50)
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    unknown = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    unknown[..., 8:] = True
    basis = (lambda x, _t, _y: x * 0.3, diffusion, (1, 16, 16), 0, None)
    for sampler in ("ddpm", "ddim", "heun", "dpmpp", "unipc"):
        repaint = Repaint(sampler, 8, jump=3, resample=2)
        (found,) = generate(Inpainting(*basis, normalize(pixels), unknown), repaint, range(1))
        assert torch.equal(to_uint8(found)[~unknown], pixels[~unknown])
        assert not torch.equal(to_uint8(found)[unknown], pixels[unknown])  # control


def test_the_grid_of_repaint():
    grid = [9, 7, 5, 3, 1, 0]
    assert repaint_grid(grid, 2, 1) == grid
    assert repaint_grid(grid, 2, 3) == [9, 7, 5, 9, 7, 5, 9, 7, 5, 3, 1, 5, 3, 1, 5, 3, 1, 0]
    assert repaint_grid(grid, 3, 2) == [9, 7, 5, 3, 1, 7, 5, 3, 1, 0]
    assert repaint_grid(grid, 1, 2) == [9, 7, 9, 7, 5, 7, 5, 3, 5, 3, 1, 3, 1, 0]
    assert repaint_grid(grid, 9, 2) == grid  # no part is as long
    for bad in ((0, 2), (2, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            repaint_grid(grid, *bad)
    with pytest.raises(ValueError, match="grid of its own"):
        repaint_grid([9, 5, 7, 0], 1, 1)


# Variation.


def modes(diffusion, s=0.1):
    """The ideal network for pixels of N(-0.5, s^2) or N(0.5, s^2), equally likely."""

    def network(x, t, _y):
        alpha_bar = diffusion.alpha_bar[int(t[0])]
        a, x = alpha_bar.sqrt(), x.double()
        variance = alpha_bar * s**2 + 1 - alpha_bar
        share = upper(x, a, variance)
        means = [m + a * s**2 / variance * (x - a * m) for m in (-0.5, 0.5)]
        return torch.lerp(*means, share).float()

    return network


def upper(x, a, variance):
    """The probability that x_t came from the upper mode."""
    return torch.sigmoid(a * x / variance)  # difference of the squares, halved, with m = 0.5


@pytest.mark.parametrize("strength", [0.3, 0.5])
def test_variations_are_of_the_posterior_mixture(strength):
    """Of an image at 0.5, as many pixels change their mode as Bayes' rule has it."""
    diffusion, count = process(400, prediction="x0"), 20_000
    start = start_of(diffusion, strength)
    model = model_of(modes(diffusion), diffusion, (1, count, 1))
    noise = torch.randn(1, 1, count, 1, generator=torch.Generator().manual_seed(1))
    x_t = diffusion.q_sample(torch.full_like(noise, 0.5), start, noise)
    sampler = Sampler("ddpm", diffusion.count_trained(start), clip=False)
    (found,) = generate(model, sampler, range(1), start=start, x=x_t)
    alpha_bar = diffusion.alpha_bar[start]
    of = upper(x_t.double(), alpha_bar.sqrt(), alpha_bar * 0.01 + 1 - alpha_bar)
    expected = of.mean().item()
    assert (found > 0).float().mean().item() == pytest.approx(expected, abs=0.012)
    assert found[found > 0].mean().item() == pytest.approx(0.5, abs=0.01)
    earlier = start_of(diffusion, strength - 0.2)
    (wrong,) = generate(  # control: from the wrong t
        model, Sampler("ddpm", earlier, clip=False), range(1), start=earlier, x=x_t
    )
    assert abs((wrong > 0).float().mean().item() - expected) > 0.012


def test_the_start_of_a_strength():
    diffusion = process(50, first_timestep=2)
    assert [start_of(diffusion, v) for v in (1.0, 0.5, 0.01)] == [50, 25, 2]
    for bad in (0.0, -1.0, 1.1, math.nan):
        with pytest.raises(ValueError, match="strength"):
            start_of(diffusion, bad)


# Inversion.


def round_trip(steps, iterations, back=None, **options):
    """The largest error of inversion and sampling of x_0 in -1 ... 1, in float64."""
    diffusion = process(20_000)
    world = GaussianWorld(diffusion, m=0.3, s=0.5)
    x_0 = torch.linspace(-1, 1, 9, dtype=torch.float64).view(9, 1, 1, 1)
    down = Sampler("ddim", steps, clip=False, **options)
    up = Inversion(**vars(down), iterations=iterations)
    model = model_of(lambda x, t, _y: world(x, t), diffusion, (1, 1, 1))
    (x_T,) = generate(model, up, range(9), x=x_0)
    (found,) = generate(model, back or down, range(9), x=x_T)
    return (found - x_0).abs().max().item(), (x_T - world.mean(20_000)) / world.std(20_000)


@pytest.mark.parametrize("iterations", [0, 1, 2])
def test_inversion_then_sampling_is_the_identity_to_the_order_of_its_iterations(iterations):
    counts = (40, 80, 160, 320)
    errors = [round_trip(steps, iterations)[0] for steps in counts]
    slope = math.log(errors[0] / errors[-1]) / math.log(counts[-1] / counts[0])
    assert slope == pytest.approx(iterations + 1, abs=0.3)


def test_on_another_grid_it_is_not():
    """The control of the test above."""
    right, _ = round_trip(160, 1)
    wrong, _ = round_trip(160, 1, Sampler("ddim", 40, clip=False))
    assert wrong > 20 * right


def test_an_image_is_inverted_to_its_own_noise():
    """The standardized value that the flow keeps, to the order of Euler's steps."""
    expected = (torch.linspace(-1, 1, 9, dtype=torch.float64).view(9, 1, 1, 1) - 0.3) / 0.5
    errors = [(round_trip(n, 1)[1] - expected).abs().max().item() for n in (40, 160)]
    assert errors[1] < 0.1
    assert errors[1] < 0.4 * errors[0]


def test_samplers_that_draw_noise_cannot_be_inverted():
    for settings in ({}, {"order": 3}, {"sampler": "heun"}, {"sampler": "unipc", "eta": 1.0}):
        assert is_deterministic(Sampler(**{"sampler": "ddim", "steps": 5, **settings}))
    noisy = ({"sampler": "ddpm"}, {"eta": 0.1}, {"restart": 1}, {"sampler": "heun", "churn": 9.0})
    for settings in noisy:
        assert not is_deterministic(Sampler(**{"sampler": "ddim", "steps": 5, **settings}))


# Noise of known sigma; interpolation.


def test_the_t_of_a_sigma():
    diffusion = process(1000, "cosine")
    for t in (1, 10, 500, 990):
        sigma = (diffusion.sigma[t] / diffusion.signal[t]).item()
        assert noise_level(diffusion, sigma) == t
        assert noise_level(diffusion, sigma * 1.0001) == t
    for bad in (0.0, 1e-4, 1e9, math.nan):
        with pytest.raises(ValueError, match="sigma must lie in"):
            noise_level(diffusion, bad)


def test_slerp_keeps_its_ends_and_the_norm():
    a, b = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    b = b * a.norm() / b.norm()
    weights = torch.linspace(0, 1, 7)
    mixed = slerp(a, b, weights)
    assert mixed.shape == (7, 1, 8, 8)
    torch.testing.assert_close(mixed[0], a)
    torch.testing.assert_close(mixed[-1], b)
    norms = mixed.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, a.norm().expand(7))
    angles = [torch.acos((x * a).sum() / a.norm() ** 2).item() for x in mixed[1:]]
    assert angles == pytest.approx([angles[-1] * w for w in weights[1:].tolist()], rel=1e-4)
    straight = torch.lerp(a, b, 0.5)
    assert straight.norm() < 0.8 * a.norm()  # control
    torch.testing.assert_close(slerp(a, a, weights), a.expand(7, 1, 8, 8))


def test_a_blend_goes_from_one_class_to_the_other():
    def network(x, _t, y):
        return x * 0 + y.view(-1, 1, 1, 1)

    model = model_of(network, process(50), (1, 2, 2), num_classes=10)
    two, six = torch.full((3,), 2), torch.full((3,), 6)
    basis = (network, model.diffusion, model.image_shape, 10, None)
    blend = Blend(*basis, two, six, torch.linspace(0, 1, 3))
    x, t = torch.zeros(4, 1, 2, 2), torch.ones(4, dtype=torch.long)
    found = blend.mixed(x, t, torch.arange(4))[:, 0, 0, 0]
    assert found.tolist() == [2, 4, 6, 10]  # the last one is "no class"


@pytest.mark.parametrize(("second", "evaluations"), [(6, 2), (2, 1)])
def test_progress_counts_both_classes_of_a_blend(second, evaluations):
    """What progress is told is what the network was asked."""
    asked, told = [], []

    def network(x, _t, _y):
        asked.append(len(x))
        return 0 * x

    basis = (network, process(50), (1, 2, 2), 10, None)
    classes = (torch.full((3,), own) for own in (2, second))
    blend = Blend(*basis, *classes, torch.linspace(0, 1, 3))
    generate(blend, Sampler("ddim", 5), range(3), torch.arange(3), progress=told.append)
    assert sum(told) == sum(asked) == 3 * 5 * evaluations


# Classification.


def two_classes(diffusion, m=0.2):
    """The ideal network of pixels N(-m, S^2) in class 0, N(m, S^2) in class 1."""
    worlds = [GaussianWorld(diffusion, own, S) for own in (-m, m)]

    def network(x, t, y):
        return torch.where(y.view(-1, 1, 1, 1) == 1, worlds[1](x, t), worlds[0](x, t))

    return model_of(network, diffusion, (1, 8, 8), num_classes=2)


CLOSE = 0.15  # standard deviations of the log ratio


def decided(model, **options):
    """Images of both classes, the bounds, and log p(x | 1) - log p(x | 0)."""
    y = torch.arange(60) % 2
    noise = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    x_0 = 0.1 * (2 * y - 1).view(-1, 1, 1, 1) + S * noise  # less apart than the classes: hard
    log_ratio = 2 * 0.2 * x_0.double().flatten(1).sum(1) / S**2
    return classify_images(model, x_0, clip=False, **options), log_ratio


def test_classes_are_bayes_decision():
    bounds, log_ratio = decided(two_classes(process(200)), stages=(256,))
    found = bounds[:, 0] - bounds[:, 1]
    clear = log_ratio.abs() > 1
    assert clear.sum() > 45
    assert torch.equal(found[clear] > 0, log_ratio[clear] > 0)
    error = (found - log_ratio).std().item()
    assert error < CLOSE * log_ratio.std().item()


def test_at_draws_of_its_own_for_every_class_they_are_not():
    """The control of the test above: what the draws have in common is what decides."""
    model, whole = two_classes(process(200)), {"stages": (256,)}
    (first, log_ratio), (second, _) = (decided(model, seed=n, **whole) for n in (0, 1))
    error = (first[:, 0] - second[:, 1] - log_ratio).std().item()
    assert error > CLOSE * log_ratio.std().item()


def test_elimination_spends_less_and_decides_alike():
    means = torch.linspace(-0.5, 0.5, 6)
    diffusion = process(200)
    worlds = [GaussianWorld(diffusion, own, S) for own in means.tolist()]

    def network(x, t, y):
        found = torch.stack([world(x, t) for world in worlds])
        return found[y, torch.arange(len(x))]

    model, y = model_of(network, diffusion, (1, 8, 8), num_classes=6), torch.arange(60) % 6
    noise = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    x_0, found = means[y].view(-1, 1, 1, 1) + S * noise, {}
    for name, errors in (("eliminating", 2.0), ("all", math.inf)):
        spent = []
        stages = {"stages": (8, 16, 32, 64), "errors": errors, "progress": spent.append}
        bounds = classify_images(model, x_0, clip=False, **stages)
        found[name] = bounds, sum(spent)
    (bounds, cost), (reference, whole) = found["eliminating"], found["all"]
    assert whole == 60 * 6 * 64
    assert cost < 0.6 * whole
    assert (bounds.argmin(1) == reference.argmin(1)).float().mean() > 0.95
    exact = (x_0.flatten(1)[:, None] - means[:, None]).square().sum(2).argmin(1)
    assert (bounds.argmin(1) == exact).float().mean() > 0.9
    differences = (own - own.min(1, keepdim=True).values for own in (bounds, reference))
    a, b = (own.flatten() for own in differences)
    assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.9  # also of what was eliminated


# Keyed noise.


def neighbours(x, t, _y):
    """A network whose every operation is of two pixels of one image."""
    return x * 0.5 + x.roll(1, -1) * 0.3 + t.view(-1, 1, 1, 1) / 100


def keyed(draw, size, network=neighbours):
    """Eleven images in batches of this size."""
    return draw(model_of(network, process(50), (1, 5, 5)), size)


def inpainted(model, size):
    x_0 = torch.linspace(-1, 1, 25).view(1, 1, 5, 5).expand(11, 1, 5, 5)
    unknown = (x_0 > 0) & (x_0 < 0.5)
    basis = (model.network, model.diffusion, model.image_shape, 0, None)
    sampler = Repaint("ddpm", 6, jump=2, resample=2)
    return generate(Inpainting(*basis, x_0, unknown), sampler, range(11), batch_size=size)[0]


def inverted(model, size):
    x_0 = torch.linspace(-1, 1, 275).view(11, 1, 5, 5)
    return generate(model, Inversion("ddim", 6), range(11), x=x_0, batch_size=size)[0]


@pytest.mark.parametrize("draw", [inpainted, inverted])
def test_the_bits_of_an_edited_image_do_not_depend_on_its_batch(draw):
    def mixing(x, t, y):
        return neighbours(x, t, y) - 1e-4 * x.mean()

    whole, mixed = keyed(draw, 11), keyed(draw, 11, mixing)
    for size in (1, 3):
        assert torch.equal(keyed(draw, size), whole)
        assert not torch.equal(keyed(draw, size, mixing), mixed)  # control


def test_known_pixels_have_noise_of_their_image(monkeypatch):
    """And without a key the result would depend on the batch: the control."""
    whole = keyed(inpainted, 11)
    assert not torch.equal(whole[0], whole[1])
    unkeyed = torch.Generator().manual_seed(0)

    def any_noise(_seed, indices, shape, *_):
        return lambda: torch.randn(len(indices), *shape, generator=unkeyed)

    monkeypatch.setattr("diffusion.editing.image_noise", any_noise)
    assert not torch.equal(keyed(inpainted, 3), keyed(inpainted, 11))


def test_the_decision_of_an_image_does_not_depend_on_its_batch():
    model = two_classes(process(200))
    whole, _ = decided(model)
    assert torch.equal(decided(model, batch_size=7)[0], whole)
    assert not torch.equal(decided(model, seed=1)[0], whole)  # control
