"""NaN and infinity: an update that would bring them in is skipped, and three in a row are the end.

All of it is decided on the device, as asking the host after every step would make it wait.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

LIMIT = 3  # skipped updates in a row


def poison(loss: Tensor) -> Tensor:
    """What to give to ``loss.backward``: 1, or NaN for a loss that is not finite.

    It makes every gradient NaN, on every rank, so that the gradient's norm alone tells.
    """
    return loss.detach() * 0 + 1


def skip_if_not_finite(
    optimizers: list[torch.optim.Optimizer], norm: Tensor, streak: Tensor
) -> None:
    """Let the coming step of the optimizers do nothing where the gradient's norm is not finite.

    ``streak`` counts such steps in a row, in place, and never falls again from LIMIT: from then on
    nothing moves, so that whoever looks later finds the weights with which it began.
    """
    skipped = ~norm.isfinite() | (streak >= LIMIT)
    streak.copy_((streak + 1) * skipped)
    for optimizer in optimizers:
        optimizer.found_inf = skipped.float()


@contextmanager
def watch(model: nn.Module) -> Iterator[list[str]]:
    """The names of the modules whose output was not finite, in the order in which they ran."""
    found: list[str] = []

    def look(name: str, output: object) -> None:
        if isinstance(output, Tensor) and not output.isfinite().all():
            found.append(name)

    hooks = [
        module.register_forward_hook(lambda _m, _x, output, name=name: look(name, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
