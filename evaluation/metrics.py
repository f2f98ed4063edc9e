"""Distances between sets of images, from their features: rows of (N, D)."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from utils.devices import double

CHUNK = 2**24  # distances held at once
ROUNDING = 16  # of squared distances, in units of the last place of the largest norm
KERNELS = 2**20  # kernels held at once: they stay in the cache


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of the normal distributions with their moments (Heusel et al. 2017, Eq. 6).

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) in float64; the trace of the root is that of
    (C_a^(1/2) C_b C_a^(1/2))^(1/2), which is symmetric. a, b: (N, D), at least two rows each.
    """
    (m_a, C_a), (m_b, C_b) = moments(a), moments(b)
    root_a = matrix_root(C_a)
    product = torch.linalg.eigvalsh(root_a @ C_b @ root_a).clamp(min=0)
    distance = (m_a - m_b).square().sum() + C_a.trace() + C_b.trace() - 2 * product.sqrt().sum()
    return max(0.0, distance.item())


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D), float64."""
    features = double(features)
    return features.mean(0), torch.cov(features.T).reshape(features.shape[1], -1)


def matrix_root(C: Tensor) -> Tensor:
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(C)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """KID: the unbiased squared MMD (Bińkowski et al. 2018, Eq. 4), kernel (x·y / D + 1)^3.

    Around 0, hence also negative, for independent rows of one distribution. In float64.
    a, b: (N, D), at least two rows each.
    """
    a, b = double(a), double(b)
    within = sum((kernel_sum(x, x) - own_kernels(x)) / (len(x) * (len(x) - 1)) for x in (a, b))
    return within - 2 * kernel_sum(a, b) / (len(a) * len(b))


def kernel_sum(a: Tensor, b: Tensor, held: int = KERNELS) -> float:
    """The kernel of every pair of rows, summed; ``held`` of them in memory at once."""
    chunks = a.split(max(1, held // len(b)))
    return sum(polynomial(chunk @ b.T, a.shape[1]) for chunk in chunks)


def own_kernels(x: Tensor) -> float:
    """The kernel of every row with itself, summed."""
    return polynomial(x.square().sum(1), x.shape[1])


def polynomial(products: Tensor, D: int) -> float:
    """The cubic kernel of these inner products of D features, summed."""
    kernels = products / D + 1
    return (kernels * kernels * kernels).sum().item()  # pow takes longer


def precision_recall(real: Tensor, samples: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, Eqs. 1-2).

    Precision is the share of samples inside the real images' manifold: within the distance of a
    real image to its k-th nearest real image. Recall exchanges the roles. Sets of more than k.
    """
    return inside(samples, real, k), inside(real, samples, k)


def inside(points: Tensor, reference: Tensor, k: int) -> float:
    """The share of points that lie in the manifold of the reference.

    Where it has more than k copies of a point, the radius is 0, up to rounding.
    """
    radii = nearest(reference, reference, k + 1)[0][:, k] ** 2  # column 0 is the point itself
    largest = (reference - reference.mean(0)).square().sum(1).max()
    radii = radii.clamp(min=(ROUNDING * torch.finfo(reference.dtype).eps * largest).item())
    hits = [(d2 <= radii).any(1) for d2 in squared_distances(points, reference)]
    return double(torch.cat(hits)).mean().item()


def nearest(
    points: Tensor,
    reference: Tensor,
    k: int = 1,
    progress: Callable[[int], object] = lambda _points: None,
) -> tuple[Tensor, Tensor]:
    """Distances to the k nearest rows of the reference, rising, and their indices; (N, k) each.

    progress is called with the number of points that were compared.
    """
    found = []
    for d2 in squared_distances(points, reference):
        found.append(d2.topk(k, largest=False))
        progress(len(d2))
    return torch.cat([d2.sqrt() for d2, _ in found]), torch.cat([index for _, index in found])


def squared_distances(points: Tensor, reference: Tensor) -> Iterator[Tensor]:
    """|p - r|^2 of every pair, a chunk of points at a time: (chunk, N_r), not negative.

    As |p|^2 - 2 p r + |r|^2, about the mean of the reference, where rounding costs least.
    """
    centre = reference.mean(0)
    reference = reference - centre
    norms = reference.square().sum(1)
    for chunk in points.split(max(1, CHUNK // len(reference))):
        p = chunk - centre
        d2 = torch.addmm(norms[None], p, reference.T, alpha=-2) + p.square().sum(1)[:, None]
        yield d2.clamp_(min=0)


def histogram(labels: Tensor, classes: int) -> list[float]:
    """The share of each class, (classes,)."""
    return (double(torch.bincount(labels, minlength=classes)) / len(labels)).tolist()
