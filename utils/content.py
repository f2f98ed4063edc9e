"""What a checkpoint may hold, plain values and tensors: walked, hashed, checked for NaN."""

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

MOST_VALUES = 2**20  # a network of 58 M parameters has 6,000
DEEPEST = 100


def walk(content: Any) -> Iterator[tuple[str, Any]]:
    """Every container, key and value with its dotted name, each before what it holds.

    Without recursion and with limits, as a hostile file can nest without end in a few bytes.
    Raises ValueError past them.
    """
    levels, count = [iter([("", content)])], 0
    while levels:
        found = next(levels[-1], None)
        if found is None:
            levels.pop()
            continue
        count += 1
        if count > MOST_VALUES or len(levels) > DEEPEST:
            raise ValueError("more values, or deeper nested, than a checkpoint has")
        yield found
        levels.append(children(*found))


def children(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The keys and values of a dict, the items of a list or tuple; nothing of the rest."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"{name} key", key
            yield f"{name}.{key}".lstrip("."), item
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield f"{name}.{i}", item


def digest(content: Any, most_bytes: float = math.inf) -> str:
    """SHA-256 over the structure, types, shapes and bytes of plain values and tensors.

    Every value is preceded by its type and size, so that no two contents read the same. Raises
    TypeError for what does not belong in a checkpoint, ValueError for a tensor whose strides claim
    more than its storage holds, and for tensors of more than ``most_bytes`` in all.
    """
    sha, size = hashlib.sha256(), 0
    for _, value in walk(content):
        if isinstance(value, Tensor):
            size += value.numel() * value.element_size()
            if size > most_bytes or not fits_its_storage(value):
                raise ValueError("a tensor is larger than its storage")
            sha.update(f"tensor {value.dtype} {tuple(value.shape)};".encode())
            flat = value.detach().cpu().contiguous().flatten()
            sha.update(flat.view(torch.uint8).numpy())
        elif isinstance(value, dict):
            sha.update(f"dict {len(value)};".encode())
        elif isinstance(value, list | tuple):
            sha.update(f"{type(value).__name__} {len(value)};".encode())
        elif value is None or type(value) in (bool, int, float, str):
            text = repr(value).encode()
            sha.update(f"{type(value).__name__} {len(text)};".encode() + text)
        else:
            raise TypeError(f"{type(value).__name__} does not belong in a checkpoint")
    return sha.hexdigest()


def fits_its_storage(value: Tensor) -> bool:
    """Whether the tensor is no larger than the memory behind it."""
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def not_finite(content: Any) -> str | None:
    """The name of the first tensor or number that is NaN or infinite."""
    for name, value in walk(content):
        if isinstance(value, Tensor) and value.is_floating_point():
            finite = bool(value.isfinite().all())
        else:
            finite = not isinstance(value, float) or math.isfinite(value)
        if not finite:
            return name
    return None


def differences(found: dict[str, Any], expected: dict[str, Any], most: int = 5) -> list[str]:
    """The first few ways in which one state_dict cannot stand for another: keys, shapes, types."""
    lines = []
    for name in [*expected, *(name for name in found if name not in expected)]:
        if name not in found:
            lines.append(f"{name} is missing")
        elif name not in expected:
            lines.append(f"{name} is unknown")
        elif form(found[name]) != form(expected[name]):
            lines.append(f"{name} is {form(found[name])} instead of {form(expected[name])}")
    return [*lines[:most], f"and {len(lines) - most} more"] if len(lines) > most else lines


def form(value: Any) -> str:
    """Type and shape of a tensor, in words."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
