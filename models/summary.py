"""A network as a table of its layers, and what its modules return as they run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from utils import tables

FORWARD_SHARE = 1 / 3  # of the time of a training step is its forward pass


class Layer(NamedTuple):
    """A module: its name, its output shape without the batch, parameters, FLOPs per image."""

    name: str
    shape: tuple[int, ...]
    parameters: int
    flops: int


@contextmanager
def watched(model: nn.Module, note: Callable[[str, object], None]) -> Iterator[None]:
    """Within it, note(name, output) is called after every module; "" is the network itself."""
    hooks = [
        module.register_forward_hook(lambda _m, _x, output, name=name: note(name, output))
        for name, module in model.named_modules()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def layers(model: nn.Module, image_shape: tuple[int, int, int]) -> list[Layer]:
    """The outermost modules that have parameters, in the order of their calls, and the total.

    FLOPs are those of matrix products and convolutions; a multiply-add counts as two.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports triton: 0.2 s

    called: dict[str, tuple[int, ...]] = {}

    def note(name: str, output: Tensor) -> None:
        called.setdefault(name, tuple(output.shape[1:]))

    modules = dict(model.named_modules())
    device = next(model.parameters()).device
    x, t = (torch.zeros(1, *image_shape, device=device), torch.ones(1, device=device).long())
    with watched(model, note), FlopCounterMode(display=False) as counter:
        model(x, t)
    flops = {name: sum(own.values()) for name, own in counter.get_flop_counts().items()}
    rows = [
        Layer(name, shape, size(modules[name]), flops.get(f"{type(model).__name__}.{name}", 0))
        for name, shape in called.items()
        if not called_within(name, called)
    ]
    total = Layer("total", called[""], size(model), counter.get_total_flops())
    return [row for row in rows if row.parameters] + [total]


def called_within(name: str, called: dict[str, tuple[int, ...]]) -> bool:
    """Whether a module around this one, other than the network itself, was called too."""
    parts = name.split(".")
    return not name or any(".".join(parts[:n]) in called for n in range(1, len(parts)))


def size(module: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in module.parameters())


HEAD = ("layer", "output (C x H x W)", "parameters", "MFLOPs per image")


def cells(rows: list[Layer]) -> list[tuple[str, ...]]:
    """The table as text, one tuple per row."""
    return [
        (name, " x ".join(map(str, shape)), f"{parameters:,}", f"{flops / 1e6:,.1f}")
        for name, shape, parameters, flops in rows
    ]


def markdown(rows: list[Layer]) -> str:
    """For TensorBoard."""
    return tables.markdown([HEAD, *cells(rows)], left=2)


def text(rows: list[Layer]) -> str:
    """For a terminal."""
    return tables.aligned([HEAD, *cells(rows)], left=2)
