"""Optimizers (AdamW; Muon in Gram form) and the learning-rate schedule."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from utils.devices import full_float32

# Quintic Newton-Schulz iteration, tuned for steep slope at 0 (Jordan et al. 2024, "Muon").
A, B, C = 3.4445, -4.7750, 2.0315
MATRIX_LR = 10.0  # Muon's learning rate in units of AdamW's


class Muon(torch.optim.Optimizer):
    """Momentum whose update is the nearest orthogonal matrix (Jordan et al. 2024).

    Takes parameters of at least two dimensions; a convolution (O, I, k, k) is the matrix
    (O, I k k). All matrices whose shorter sides are equal go through one batched iteration.
    """

    found_inf: Tensor | None = None  # where it is 1, a step does nothing; as torch's fused AdamW

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """One update from the gradients, with Nesterov momentum."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            buffers = [self.buffer(p) for p in params]
            grads = [p.grad for p in params]
            if self.found_inf is not None:  # the mean is then pulled towards itself
                pairs = zip(grads, buffers, strict=True)
                grads = [g.where(self.found_inf == 0, buffer) for g, buffer in pairs]
            torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
            ahead = torch._foreach_lerp(grads, buffers, group["momentum"])
            with full_float32():
                updates = orthogonalize([g.flatten(1) for g in ahead])
            if self.found_inf is not None:
                torch._foreach_mul_(updates, 1 - self.found_inf)
            shaped = [update.view_as(p) for p, update in zip(params, updates, strict=True)]
            torch._foreach_sub_(params, shaped, alpha=group["lr"])

    def buffer(self, p: nn.Parameter) -> Tensor:
        """The running mean of the gradient."""
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        return state["momentum"]


def orthogonalize(matrices: Sequence[Tensor]) -> list[Tensor]:
    """U V^T of each G = U S V^T, nearly, times sqrt(max(1, rows / columns)).

    Newton-Schulz on the Gram matrix: all five iterations work on m x m matrices, m the shorter
    side, and Q G is formed once at the end. On a CPU that, batched, makes Muon nearly free.
    """
    grams: dict[int, list[int]] = defaultdict(list)
    wide = [G if G.shape[0] <= G.shape[1] else G.T for G in matrices]
    for i, G in enumerate(wide):
        grams[G.shape[0]].append(i)
    updates: list[Tensor] = list(matrices)
    for same in grams.values():
        gram = torch.stack([wide[i] @ wide[i].T for i in same])
        for i, Q in zip(same, inverse_root(gram), strict=True):
            update = Q @ wide[i]
            rows, columns = matrices[i].shape
            update = update if rows <= columns else update.T
            updates[i] = update * max(1, rows / columns) ** 0.5
    return updates


def inverse_root(gram: Tensor) -> Tensor:
    """Q with Q G nearly orthogonal, from G G^T (N, m, m): five Newton-Schulz steps."""
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(1e-30)[:, None, None]
    X = gram / trace
    eye = torch.eye(X.shape[-1], device=X.device, dtype=X.dtype)
    Q = A * eye + B * X + C * (X @ X)
    P = Q
    for _ in range(4):
        X = P @ X @ P
        P = A * eye + B * X + C * (X @ X)
        Q = P @ Q
    return Q / trace.sqrt()


def adamw(model: nn.Module, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """AdamW (Loshchilov & Hutter 2019) on everything."""
    return [torch.optim.AdamW(model.parameters(), lr, weight_decay=weight_decay, fused=True)]


def muon(model: nn.Module, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon at 10 x lr on the hidden matrices, AdamW on the rest."""
    matrices = model.matrices()
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in taken]
    return [
        Muon(matrices, MATRIX_LR * lr),
        torch.optim.AdamW(rest, lr, weight_decay=weight_decay, fused=True),
    ]


OPTIMIZERS: dict[str, Callable[..., list[torch.optim.Optimizer]]] = {"adamw": adamw, "muon": muon}


DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "constant": lambda _: 1.0,
}


@dataclass(frozen=True)
class LRSchedule:
    """Warm-up, then decay to the last step: a pure function of the step.

    replanned: the step from which total_steps holds, and how many it was until then.
    """

    total_steps: int
    warmup_steps: int
    decay: str
    replanned: tuple[int, int] | None = None

    @classmethod
    def over(cls, total_steps: int, warmup_steps: int, decay: str) -> Self:
        """A schedule whose warm-up takes at most a tenth of it."""
        return cls(total_steps, min(warmup_steps, total_steps // 10), decay)

    def refit(self, step: int, total_steps: int) -> Self:
        """Another end: what is left of the curve after this step, stretched or compressed to it."""
        return replace(self, total_steps=total_steps, replanned=(step, self.total_steps))

    def factor(self, step: float) -> float:
        """What step 1 ... total_steps multiplies the learning rate with; (0, 1]."""
        since, total = self.replanned or (0, self.total_steps)
        if step > since:
            step = since + (step - since) * (total - since) / (self.total_steps - since)
        if step <= self.warmup_steps:
            return step / self.warmup_steps
        falling = total + 1 - self.warmup_steps
        return DECAYS[self.decay]((step - self.warmup_steps) / falling)
