"""Nested dicts, lists and tuples of plain values and tensors: walk, hash, compare, find NaN."""

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def walk(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every container, key and value with its dotted name, each before what it holds."""
    yield name, content
    for child, value in children(name, content):
        yield from walk(value, child)


def children(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The keys and values of a dict, the items of a list or tuple; nothing of the rest."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"{name} key".lstrip(), key
            yield f"{name}.{key}".lstrip("."), item
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield f"{name}.{i}", item


def digest(content: Any) -> str:
    """SHA-256 over the structure, types, shapes and bytes of plain values and tensors.

    Every value is preceded by its type and size, so that no two contents read the same. Raises
    TypeError for other values.
    """
    sha = hashlib.sha256()
    for _, value in walk(content):
        if isinstance(value, Tensor):
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
            raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")
    return sha.hexdigest()


def differing(a: Any, b: Any) -> list[str]:
    """The names of the leaves that are not equal bit for bit, or are in one of the two alone.

    "model key" is named where the keys of ``model`` differ in number, type or order.
    """
    first, second = leaves(a), leaves(b)
    names = dict.fromkeys([*first, *second])
    return [name for name in names if first.get(name) != second.get(name)]


def leaves(content: Any) -> dict[str, list[str]]:
    """The digests of the leaves by name; all keys of a dict have one name, as 0 and "0" may."""
    found: dict[str, list[str]] = {}
    for name, value in walk(content):
        if not (isinstance(value, dict | list) and value):  # an empty one is a leaf too
            found.setdefault(name, []).append(digest(value))
    return found


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


def mismatches(found: dict[str, Any], expected: dict[str, Any], most: int = 5) -> list[str]:
    """Why one state_dict cannot be loaded for another: the first few keys, shapes or types."""
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
