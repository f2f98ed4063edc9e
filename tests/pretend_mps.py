"""A device "mps" where there is none: tensors that say they are on it, and compute on the CPU.

What Apple's GPUs do not allow is listed: float64, and tensors of two devices in one operation. So
are the crossings, at which a program waits for the device, of whatever kind it is.
"""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

import utils.seeding

ROOT = Path(__file__).parent.parent
CPU, MPS = torch.device("cpu"), torch.device("mps")
CROSSES = {"copy_", "__setitem__", "to", "_fused_adamw_", "__set__"}  # from device to device
THERE = WeakIdKeyDictionary()  # the tensors on the device; an attribute would be saved with them
NESTED = tuple | list | dict
TO_PYTHON = {"numpy", "__array__"}
# What is only known once the device has finished: its result is a number, or has its shape by it.
READS = TO_PYTHON | {"item", "tolist", "cpu", "nonzero", "argwhere", "masked_select", "unique"}
READS |= {"__bool__", "__int__", "__float__", "__index__", "equal", "allclose", "bincount"}
SENDS = {"tensor", "as_tensor", "from_numpy"}


def tensors(tree: Any) -> list[Tensor]:
    """Those in lists and dicts too; torch's own pytree would take half of a test's time."""
    if isinstance(tree, Tensor):
        return [tree]
    items = tree.values() if isinstance(tree, dict) else tree
    return [t for item in items for t in tensors(item)] if isinstance(tree, NESTED) else []


def on_mps(tensor: Tensor) -> bool:
    return tensor in THERE


def place(tensor: Tensor, there: bool) -> None:
    if there:
        THERE[tensor] = None
    else:
        THERE.pop(tensor, None)


class PretendMPS(TorchFunctionMode):
    """Within it ``violations`` lists what a real one refuses, by the line of the program.

    And ``crossings`` what waits for the device: what is read from it, and copies that block.
    """

    def __init__(self) -> None:
        super().__init__()
        self.violations: list[str] = []
        self.crossings: list[str] = []

    def __torch_function__(self, func, _types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.__name__
        if func is torch.device or name == "_parse_to":
            return func(*args, **kwargs)
        if func == Tensor.device.__get__:
            return MPS if on_mps(args[0]) else CPU
        if func == Tensor.data.__set__:
            func(*args)
            place(args[0], on_mps(args[1]))
            return None
        own = tensors((args, kwargs))
        self.check_devices(name, own)
        target = self.target(name, args, kwargs, own)
        by_torch = str(ROOT) not in sys._getframe(1).f_code.co_filename
        if waits(name, args, kwargs, own, target) and not (by_torch and name == "to"):
            self.crossings.append(located(name))  # torch groups tensors by their real device
        result = func(*real(args), **real(kwargs))
        if name in ("to", "cpu") and target != on_mps(args[0]):
            result = result.clone()  # so that the original keeps its device
        for tensor in tensors(result):
            place(tensor, target)
            if target and tensor.dtype == torch.float64:
                self.note(f"{name} makes float64 {list(tensor.shape)}")
        return result

    def target(self, name: str, args: tuple, kwargs: dict[str, Any], own: list[Tensor]) -> bool:
        """Whether the result is on the device."""
        if name == "cpu":
            return False
        if name == "to":
            devices = [a for a in (*args[1:], *kwargs.values()) if is_device(a)]
            others = [a for a in args[1:] if isinstance(a, Tensor)]
            asked = [torch.device(d) == MPS for d in devices] + [on_mps(t) for t in others]
            return asked[0] if asked else on_mps(args[0])
        if kwargs.get("device") is not None:
            return torch.device(kwargs["device"]) == MPS
        return any(map(on_mps, own))

    def check_devices(self, name: str, own: list[Tensor]) -> None:
        """A tensor of one number may be on the CPU, and the index of one on the device."""
        if name in TO_PYTHON and on_mps(own[0]):
            self.note(f"{name} of a tensor on mps")
        indexed = name == "__getitem__" and on_mps(own[0])
        if len(own) < 2 or name in CROSSES or indexed:
            return
        own = [t for t in own if not isinstance(t, nn.Parameter)]
        if len({on_mps(t) for t in own if on_mps(t) or t.ndim}) > 1:
            self.note(f"{name} of {[(list(t.shape), on_mps(t)) for t in own]}")

    def note(self, what: str) -> None:
        self.violations.append(located(what))


def waits(name: str, args: tuple, kwargs: dict, own: list[Tensor], target: bool) -> bool:
    """Whether the program goes on only when the device has finished, or has its copy."""
    if name in READS:
        return any(map(on_mps, own))
    if name in SENDS:
        return target
    if name == "to" and on_mps(args[0]) != target:
        return on_mps(args[0]) or not kwargs.get("non_blocking")
    if name == "copy_" and on_mps(args[0]) != on_mps(args[1]):
        return not kwargs.get("non_blocking")
    if name in ("__getitem__", "__setitem__"):  # a mask: how many it chooses
        return any(on_mps(t) and t.dtype == torch.bool for t in tensors(args[1:2]))
    return name == "where" and len(args) == 1 and on_mps(args[0])


def located(what: str) -> str:
    """With the line of the program that did it."""
    frames = [f for f in traceback.extract_stack() if f.filename.startswith(str(ROOT))]
    own = [f for f in frames if Path(f.filename).parent != ROOT / "tests"] or frames[:1]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}: {what}"


def is_device(value: Any) -> bool:
    return isinstance(value, torch.device) or (isinstance(value, str) and value in ("cpu", "mps"))


def real(arguments: tuple | dict[str, Any]) -> Any:
    """With the CPU for the device."""
    if isinstance(arguments, tuple):
        return tuple(CPU if is_device(a) else a for a in arguments)
    return {name: CPU if is_device(a) else a for name, a in arguments.items()}


@contextmanager
def pretend_mps() -> Iterator[list[str]]:
    """A machine that has one; the violations."""
    with pretend_device() as mode:
        yield mode.violations


@contextmanager
def pretend_device() -> Iterator[PretendMPS]:
    """The same; violations and crossings."""
    generator = utils.seeding.Generator
    with pytest.MonkeyPatch.context() as patch, PretendMPS() as mode:
        patch.setattr(torch.mps, "device_count", lambda: 1)
        patch.setattr(torch.mps, "synchronize", lambda: None)
        patch.setattr(utils.seeding, "Generator", lambda _device: generator())
        yield mode
