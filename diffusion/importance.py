"""Timesteps drawn in proportion to the size of their losses (Nichol & Dhariwal 2021, Sec. 3.3)."""

import torch
from torch import Tensor

BINS = 64  # of t, within which all t are equally likely
MEMORY = 0.99  # of the running sums, per step
TRUST = 0.5  # losses of a bin from which on its own mean counts for more than that of all
UNIFORM = 0.1  # share of t that is drawn evenly, so that no weight exceeds 10


class LossMoments:
    """Running second moments of the loss, by bin of t; all on the device.

    timesteps: T. sums (BINS, 2): of squared losses, and of their number; both decay.
    """

    def __init__(self, timesteps: int, device: torch.device) -> None:
        t = torch.arange(timesteps + 1, device=device)
        self.bins = torch.arange(BINS, device=device)
        self.bin_of = ((t - 1).clamp(min=0) * BINS).div(timesteps, rounding_mode="floor")
        self.sums = torch.zeros(BINS, 2, device=device)

    def of(self, t: Tensor, losses: Tensor) -> Tensor:
        """The sums (BINS, 2) of a batch, t (B,) and losses (B,); those not finite are left out."""
        finite = losses.isfinite()
        rows = torch.stack([losses.where(finite, 0).square(), finite.float()], dim=1)
        member = self.bins[:, None] == self.bin_of[t]
        return member.to(rows.dtype) @ rows  # unlike index_add, the same bits every time on CUDA

    def update(self, sums: Tensor) -> None:
        """Take in the sums of a global batch."""
        self.sums.mul_(MEMORY).add_(sums)

    def density(self, trained: Tensor) -> Tensor:
        """The probability of each t, (T + 1,), of those t where ``trained`` (T + 1,) is positive.

        p(t) ~ sqrt(E[L_t^2]) (Eq. 18); bins with few losses are drawn towards the mean of all.
        """
        squares, counts = self.sums.T.to(trained.dtype)
        overall = squares.sum() / counts.sum()
        overall = torch.where((squares > 0).any(), overall, 1.0)
        rms = ((squares + TRUST * overall) / (counts + TRUST)).sqrt()
        allowed = (trained > 0).to(trained.dtype)
        weighted = rms[self.bin_of] * allowed
        return UNIFORM * allowed / allowed.sum() + (1 - UNIFORM) * weighted / weighted.sum()
