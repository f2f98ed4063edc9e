"""Exponential integrators: steps in lambda, half the log-SNR, of an estimate of x_0 that varies.

What DPM-Solver++ and UniPC share. With x_t = alpha x_0 + sigma eps, as their papers have it, the
solution of the probability-flow ODE is x_s = sigma_s / sigma_t x_t + sigma_s times the integral of
e^lambda x_0_hat over lambda_t ... lambda_s; the linear part is exact.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion.gaussian import GaussianDiffusion
from diffusion.tensors import expand

Known = tuple[float, Tensor]  # lambda and the estimate of x_0 there


def data_step(
    diffusion: GaussianDiffusion, x: Tensor, D: Tensor, t: int, s: int, eta: float = 0.0
) -> Tensor:
    """From x_t to the mean of x_s, exact if the estimate of x_0 is D all along.

    Lu et al. (2022): of the probability-flow ODE at eta = 0, of the reverse SDE at eta = 1.
    """
    h = (diffusion.snr(s) / diffusion.snr(t)).log() / 2
    (_, sigma_t), (alpha_s, sigma_s) = (diffusion.scales(n, x) for n in (t, s))
    kept = sigma_s / sigma_t
    if eta > 0:  # h may be infinite
        kept = kept * expand(torch.exp(-eta * h), x)
    return kept * x - alpha_s * expand(torch.expm1(-(1 + eta) * h), x) * D


def half_log_snr(diffusion: GaussianDiffusion, t: int) -> float:
    """lambda_t; minus infinity where x_t has no signal."""
    return diffusion.snr(t).log().item() / 2


def extrapolate(known: Sequence[Known], to: float, end: Known | None = None) -> Tensor:
    """The D of ``data_step`` from known[0] to this lambda: as the known estimates go on.

    end: the estimate there, for a correction.
    """
    (start, x_0), *earlier = known
    h = to - start
    nodes = [((own - start) / h, estimate) for own, estimate in earlier]
    nodes += [(1.0, end[1])] if end else []
    D = x_0
    for (r, estimate), weight in zip(nodes, unipc_weights([r for r, _ in nodes], h), strict=True):
        D = D + weight / r * (estimate - x_0)
    return D


def unipc_weights(nodes: Sequence[float], h: float) -> list[float]:
    """rho_k with sum_k rho_k r_k^(i - 1) = b_i, for i = 1 ... the number of nodes r_k; float64.

    b_i = i! z phi_(i + 1)(z) / B(h) with z = -h, B(h) = e^z - 1, phi_1(z) = (e^z - 1) / z and
    phi_(i + 1)(z) = (phi_i(z) - 1 / i!) / z (Zhao et al. 2023). One alone is 1 / 2, of the same
    order and what their code takes.
    """
    if len(nodes) < 2:
        return [0.5] * len(nodes)
    z, b = -h, []
    phi = math.expm1(z) / z
    for i in range(1, len(nodes) + 1):
        phi = (phi - 1 / math.factorial(i)) / z
        b.append(math.factorial(i) * z * phi / math.expm1(z))
    powers = torch.arange(len(nodes), dtype=torch.float64)[:, None]
    R = torch.tensor(nodes, dtype=torch.float64) ** powers
    return torch.linalg.solve(R, torch.tensor(b, dtype=torch.float64)).tolist()
