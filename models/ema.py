"""Exponential moving averages of the weights."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class PowerEMA(AveragedModel):
    """The network to sample from: an EMA with a power-function profile (Karras et al. 2024).

    After n updates the decay is (1 - 1/n)^(power + 1) (their Eq. 127), at most ``max_decay``: the
    averaging window grows with the run, and the initialization is forgotten without a warm-up.
    max_decay = 0 copies the weights.
    """

    def __init__(self, model: nn.Module, power: float, max_decay: float) -> None:
        super().__init__(model)
        self.power, self.max_decay = power, max_decay
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """As the base class, without its device-side copy of n, which would synchronize."""
        self.n_averaged += 1
        decay = min(self.max_decay, (1 - 1 / int(self.n_averaged)) ** (self.power + 1))
        averages, weights = list(self.module.parameters()), list(model.parameters())
        torch._foreach_lerp_(averages, weights, 1 - decay)
