"""Distances between sets of images where the answer is known."""

import math

import pytest
import torch
from gaussian_world import GaussianWorld

from diffusion import GaussianDiffusion, last, make_alphas, uniform_grid
from diffusion.samplers import ddpm
from evaluation import metrics
from evaluation.memorization import closeness, verdict
from evaluation.metrics import (
    frechet_distance,
    histogram,
    kernel_distance,
    kernel_sum,
    matrix_root,
    moments,
    nearest,
    precision_recall,
)


def normal(n, d, mean=0.0, std=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    return mean + std * torch.randn(n, d, generator=g, dtype=torch.float64)


def whitened(n, d, seed=0):
    """Rows whose mean is 0 and whose covariance is 1, not nearly but exactly."""
    x = normal(n, d, seed=seed)
    mean, C = moments(x)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(C), (x - mean).T, upper=False).T


def test_the_frechet_distance_of_two_normals_is_the_closed_form():
    """|m_a - m_b|^2 + sum of (s_a - s_b)^2 where the covariances are diagonal."""
    x, y = whitened(300, 6), whitened(400, 6, seed=1)
    s_a, s_b = torch.linspace(0.1, 2, 6).double(), torch.linspace(3, 0, 6).double()
    m = torch.arange(6).double()
    expected = m.square().sum() + (s_a - s_b).square().sum()
    assert frechet_distance(s_a * x, m + s_b * y) == pytest.approx(expected.item())
    assert frechet_distance(s_a * x, s_a * y) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(s_a * x, s_b * y) > 1  # control: the means alone do not make it


def test_the_frechet_distance_does_not_see_a_rotation_of_both_and_sees_that_of_one():
    x, y = whitened(300, 5) * torch.arange(1, 6), whitened(300, 5, seed=1)
    Q, _ = torch.linalg.qr(normal(5, 5, seed=2))
    assert frechet_distance(x @ Q, y @ Q) == pytest.approx(frechet_distance(x, y))
    assert frechet_distance(x @ Q, x) > 0.1
    # Commuting covariances have a closed form, others only that of the product's eigenvalues.
    C = Q.T @ torch.diag(torch.arange(1.0, 6).double() ** 2) @ Q
    D = torch.diag(torch.arange(1.0, 6).double() ** 2)
    root = torch.linalg.eigvals(C @ D).real.sqrt().sum()
    expected = C.trace() + D.trace() - 2 * root
    assert frechet_distance(x @ Q, x) == pytest.approx(expected.item())


def test_the_root_of_a_matrix_squares_to_it_even_when_singular():
    x = normal(4, 6)
    C = x.T @ x  # of rank 4
    root = matrix_root(C)
    torch.testing.assert_close(root @ root, C)
    torch.testing.assert_close(root, root.T)


def test_the_kernel_distance_is_the_double_loop():
    """Bińkowski et al. 2018, Eq. 4, written out; the biased estimate is the control."""
    a, b = normal(7, 5), normal(9, 5, 0.5, seed=1)

    def mean(x, y, pairs):
        return sum(float((x[i] @ y[j] / 5 + 1) ** 3) for i, j in pairs) / len(pairs)

    def within(x, itself):
        return [(i, j) for i in range(len(x)) for j in range(len(x)) if itself or i != j]

    across = mean(a, b, [(i, j) for i in range(7) for j in range(9)])
    unbiased, biased = (
        mean(a, a, within(a, itself)) + mean(b, b, within(b, itself)) - 2 * across
        for itself in (False, True)
    )
    assert kernel_distance(a, b) == pytest.approx(unbiased, abs=1e-12)
    assert kernel_distance(a, b) != pytest.approx(biased, abs=0.1)  # control


def test_the_kernel_distance_is_0_in_expectation_and_grows_with_the_difference():
    same = [
        kernel_distance(normal(50, 8, seed=2 * i), normal(60, 8, seed=2 * i + 1))
        for i in range(200)
    ]
    error = torch.tensor(same).std().item() / len(same) ** 0.5
    assert abs(sum(same) / len(same)) < 4 * error
    assert min(same) < 0 < max(same)
    assert kernel_distance(normal(50, 8), normal(60, 8, 1.0, seed=1)) > 100 * error  # control
    assert kernel_distance(normal(50, 8), normal(60, 8, 0.0, 2.0, seed=1)) > 100 * error


def test_the_chunks_of_kernels_do_not_matter():
    a, b = normal(100, 3), normal(90, 3, 0.5, seed=1)
    assert kernel_sum(a, b, 7 * 90) == pytest.approx(kernel_sum(a, b))
    assert kernel_sum(a, b[:89], 7 * 90) != pytest.approx(kernel_sum(a, b))  # control


def test_precision_and_recall_are_the_share_of_modes_that_are_right_and_that_are_covered():
    """Four modes, far apart, equally likely: samples from two of them and from one that is not."""
    modes = 100 * torch.eye(5, dtype=torch.float64)
    real = torch.cat([modes[i] + normal(100, 5, seed=i) for i in range(4)])
    samples = torch.cat([modes[i] + normal(100, 5, seed=10 + i) for i in (0, 1, 4)])
    precision, recall = precision_recall(real, samples)
    assert precision == pytest.approx(2 / 3, abs=0.1)
    assert recall == pytest.approx(2 / 4, abs=0.1)
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real, real + 1000) == (0.0, 0.0)  # control


def test_precision_by_hand():
    """On a line: the third neighbour of 0 is 3 away, of 1 and 2 two, of 3 three."""
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    samples = torch.tensor([[-3.0], [-3.1], [1.5], [6.0], [6.5]])
    assert precision_recall(real, samples)[0] == pytest.approx(3 / 5)


def test_copies_in_the_reference_have_themselves_inside():
    """Where a point has more than k copies its radius is 0, and rounding must not decide."""
    real = normal(30, 64, seed=2).float().repeat_interleave(5, 0) + 3
    assert precision_recall(real, real[::5].clone()) == (1.0, 1.0)
    assert precision_recall(real, real[::5] * 1.01)[0] == 0  # control


def test_nearest_neighbours_are_those_of_all_pairs_written_out():
    points, reference = normal(50, 8), normal(70, 8, seed=1)
    every = (points[:, None] - reference[None]).norm(dim=2)
    distances, index = nearest(points, reference, 4)
    torch.testing.assert_close(distances, every.sort(1).values[:, :4])
    assert torch.equal(index, every.argsort(1)[:, :4])
    assert nearest(reference.float(), reference.float())[0].max() < 1e-2


def test_the_chunks_do_not_matter(monkeypatch):
    a, b = normal(100, 3), normal(90, 3, 0.5, seed=1)
    whole = precision_recall(a, b), nearest(a, b, 2)
    monkeypatch.setattr(metrics, "CHUNK", 7 * 90)
    parts = precision_recall(a, b), nearest(a, b, 2)
    assert whole[0] == parts[0]
    torch.testing.assert_close(whole[1], parts[1])


def test_a_damaged_sampler_scores_worse():
    """Ancestral sampling in the Gaussian world, and the same with noise of half the size."""
    diffusion = GaussianDiffusion(make_alphas("cosine", 200), prediction="eps")
    world = GaussianWorld(diffusion, m=0.3, s=0.2)
    g = torch.Generator().manual_seed(0)

    def draw(size):
        def randn():
            return size * torch.randn(2000, 4, generator=g)

        return last(
            ddpm(world, diffusion, randn() / size, uniform_grid(diffusion, 100), randn, clip=False)
        )

    real = normal(4000, 4, 0.3, 0.2, seed=3)
    floor = frechet_distance(normal(2000, 4, 0.3, 0.2, seed=4), real)
    good, damaged = frechet_distance(draw(1.0), real), frechet_distance(draw(0.5), real)
    assert good < 10 * floor
    assert damaged > 10 * good


def test_a_histogram_counts_classes_that_do_not_occur():
    assert histogram(torch.tensor([0, 2, 2, 0, 0]), 4) == [0.6, 0.0, 0.4, 0.0]


@pytest.fixture
def world():
    """Training images on a plane in 50 dimensions, and unseen ones of the same kind."""
    basis = normal(6, 50, seed=9)

    def draw(n, seed):
        return normal(n, 6, seed=seed) @ basis

    train = draw(2000, 0)
    return draw, train, nearest(draw(1000, 1), train)[0][:, 0]


def test_unseen_images_are_not_taken_for_copies(world):
    draw, train, unseen = world
    found = closeness(nearest(draw(1000, 2), train)[0][:, 0], unseen)
    assert found["median_ratio"] == pytest.approx(1, abs=0.05)
    assert found["closer"] == pytest.approx(0.01, abs=0.01)
    assert verdict(found) == "no sign of memorization"


@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
def test_copies_are_found_even_among_unseen_images(world, share):
    draw, train, unseen = world
    n = round(1000 * share)
    copies = train[torch.arange(n) % 100] + 0.01 * normal(n, 50, seed=5)
    samples = torch.cat([copies, draw(1000 - n, 2)])
    found = closeness(nearest(samples, train)[0][:, 0], unseen)
    assert found["copies"] == pytest.approx(share, abs=0.01)
    assert verdict(found) == "copies training images"


def test_what_is_merely_near_is_said_to_be():
    unseen = torch.linspace(1, 2, 1001)
    found = closeness(torch.cat([torch.full((100,), 0.9), torch.full((900,), 1.5)]), unseen)
    assert found["closer"] == pytest.approx(0.1)
    assert math.isclose(found["copies"], 0)
    assert "look at the pairs" in verdict(found)
