"""A model on measured steps: how a step of the original preset shortens with more ranks."""

from typing import Any

NETWORKS = {  # bytes a second
    "10 Gbit/s": 1.25e9,
    "100 Gbit/s": 12.5e9,
    "300 GB/s, within one machine": 300e9,
}
ALONE = ("sample t and noise", "clip", "optimizer", "Muon", "EMA")  # parts every rank does in full
RANKS = (1, 2, 4, 8, 16, 32, 64)


def step_seconds(
    measured: dict[str, float], gradient_bytes: int, ranks: int, speed: float
) -> float:
    """Of the measured step the part that is shared, what is not, and the all-reduce, not hidden.

    The network is taken to be as efficient on few images as on many, and the connection to have no
    latency: both flatter large N. A ring sends and receives 2 (N - 1) / N of the gradient
    (Patarasuk & Yuan 2009).
    """
    alone = sum(measured.get(name, 0.0) for name in ALONE)
    shared = measured["whole step"] - alone
    return shared / ranks + alone + 2 * (ranks - 1) / ranks * gradient_bytes / speed


def pays(measured: dict[str, float], gradient_bytes: int, speed: float) -> int:
    """The largest N in RANKS that still makes a step at least 1.5 times as fast as half as many."""
    times = [step_seconds(measured, gradient_bytes, n, speed) for n in RANKS]
    n = 0
    while n + 1 < len(RANKS) and times[n] / times[n + 1] >= 1.5:
        n += 1
    return RANKS[n]


def table(training: list[dict[str, Any]], parameters: int) -> list[str]:
    """Markdown: the speed-up over one rank, for every measured number format, by network."""
    rows = [r for r in training if r["preset"] == "original" and "parts" in r]
    lines = [
        "| model of `--preset original`, speed-up with N ranks | "
        + " | ".join(map(str, RANKS))
        + " | pays up to |",
        "|---|" + "---|" * (len(RANKS) + 1),
    ]
    for row in rows:
        for name, speed in NETWORKS.items():
            times = [step_seconds(row["parts"], 4 * parameters, n, speed) for n in RANKS]
            gains = " | ".join(f"{times[0] / t:.1f}" for t in times)
            last = pays(row["parts"], 4 * parameters, speed)
            last = f"at least {last}" if last == RANKS[-1] else last
            lines.append(f"| {row['precision']}, {name} | {gains} | {last} |")
    return lines
