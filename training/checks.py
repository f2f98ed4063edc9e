"""Arguments that a caller in Python gives, checked: a ConfigError in one line for bad ones."""

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from config import ConfigError, check_range

T = TypeVar("T")


def count(name: str, value: Any, least: int = 1) -> int:
    """The value as an int. ConfigError unless it is one from ``least`` to 10^7."""
    check_range(name, number := integer(name, value), least, 10**7)
    return number


def checked(function: Callable[..., T], *arguments: Any) -> T:
    """What the function returns, with its ValueError as a ConfigError."""
    try:
        return function(*arguments)
    except ValueError as e:
        raise ConfigError(str(e)) from e


def check_classes(classes: object) -> None:
    """ConfigError unless it is None or a list of labels or class names."""
    listed = (
        isinstance(classes, Sequence | Tensor | np.ndarray) and getattr(classes, "ndim", 1) == 1
    )
    if classes is not None and (isinstance(classes, str) or not listed):
        raise ConfigError(f"classes must be a list of labels like [7, 7], got {classes!r}")


def integer(name: str, value: Any) -> int:
    """The value as an int. ConfigError for any other type, bool included."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return operator.index(value.item() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError) as e:
        raise ConfigError(f"{name} must be an integer, got {value!r}") from e
