"""Axes of charts: round ticks that cover the data, and where a value lies between them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MOST = 6  # ticks, or one more
# Ticks within a decade, finest first; the first that gives few enough is taken.
MANTISSAS = ((1, 1.5, 2, 3, 4, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,))
UNITS = ((1e6, "M"), (1e3, "k"))
TINY, HUGE = 1e-100, 1e100  # sizes that a chart can tell from 0, and show


@dataclass(frozen=True)
class Axis:
    """From the first tick to the last; what lies evenly on it is ``scale`` of a value."""

    ticks: tuple[float, ...]
    scale: Callable[[float], float]

    def place(self, value: float) -> float:
        """Where the value lies: 0 at the first tick, 1 at the last."""
        first, last, own = map(self.scale, (self.ticks[0], self.ticks[-1], value))
        return (own - first) / (last - first)

    @property
    def labels(self) -> list[str]:
        """Of the ticks; in thousands or millions where they are large."""
        top = max(map(abs, self.ticks))
        unit, suffix = next((u for u in UNITS if 10 * u[0] <= top < 1e10), (1.0, ""))
        return [f"{tick / unit:.8g}{suffix if tick else ''}" for tick in self.ticks]


def linear(values: Sequence[float]) -> Axis:
    """Even steps of 1, 2 or 5 times a power of ten. values: at least one, less than HUGE."""
    return Axis(even_ticks(*widened(min(values), max(values))), float)


def logarithmic(values: Sequence[float]) -> Axis:
    """Even ratios. values: at least one, TINY ... HUGE."""
    low, high = widened(min(values), max(values))
    if high < 2 * low:  # hardly bent, and too short for the ticks of a decade
        return Axis(even_ticks(low, high), math.log)
    return Axis(next(filter(None, (ratio_ticks(low, high, own) for own in MANTISSAS))), math.log)


def widened(low: float, high: float) -> tuple[float, float]:
    """The range; that of one value reaches a tenth to both sides."""
    size = max(abs(low), abs(high))
    if high - low > max(1e-9 * size, TINY):
        return low, high
    half = size / 10 if size > TINY else 1.0
    return low - half, high + half


def even_ticks(low: float, high: float) -> tuple[float, ...]:
    """Multiples of a round step, at most MOST + 1, that cover low < high."""
    rough = (high - low) / (MOST - 1)
    power = math.floor(math.log10(rough))
    digit = next(d for d in (1, 2, 5, 10) if decimal(d, power) >= rough * (1 - 1e-9))
    step = decimal(digit, power)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(decimal(digit * i, power) for i in range(first, last + 1))


def ratio_ticks(low: float, high: float, mantissas: Sequence[float]) -> tuple[float, ...]:
    """Those of each decade that cover low < high; none where they are too many.

    Of the powers of ten alone as many are left out between them as is needed.
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = -(-(last - first) // MOST) if len(mantissas) == 1 else 1
    decades = range(first, last + stride, stride)
    every = [decimal(m, power) for power in decades for m in mantissas]
    below = max(i for i, tick in enumerate(every) if tick <= low * (1 + 1e-9))
    above = min(i for i, tick in enumerate(every) if tick >= high * (1 - 1e-9))
    ticks = tuple(every[below : above + 1])
    return ticks if len(ticks) <= MOST + 1 else ()


def decimal(digits: float, power: int) -> float:
    """digits * 10^power, rounded once: the float that a person would type."""
    return digits * 10.0**power if power >= 0 else digits / 10.0**-power
