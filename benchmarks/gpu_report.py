"""The table of what on_gpu.py found: the aims first, then the numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Results = dict[str, dict[str, Any]]
PRESETS, MODES = ("mnist", "original", "cifar10"), ("eager", "compiled", "graphs")
GRAPHS_PAY = (
    1.10  # times the speed of the compiled loop of `mnist`, from which on they are worth it
)


def table(results: Results) -> str:
    """Markdown. Items that are not done are named."""
    whole = {name: r["found"] for name, r in results.items() if not r["failed"]}
    lines = [hardware(results), "", "| aim | measured | met |", "|---|---|---|"]
    for aim in AIMS:
        lines.append(f"| {aim.text} | {aim.row(whole)} |")
    lines += ["", *graphs(whole), "", *speeds(whole), "", *rest(whole)]
    failed = [name for name, r in results.items() if r["failed"]]
    return "\n".join([*lines, *(f"FAILED: {name}" for name in failed)])


def hardware(results: Results) -> str:
    """Where and when: of the first item that has it."""
    known = next((r["hardware"] for r in results.values() if "hardware" in r), None)
    if known is None:
        return "nothing was measured yet"
    rehearsed = any(r.get("rehearsal") for r in results.values())
    line = f"GPU {known['gpu']}, torch {known['torch']}, commit {known['commit']}, {known['date']}"
    return f"REHEARSAL, the numbers mean nothing: {line}" if rehearsed else line


@dataclass(frozen=True)
class Aim:
    """A promise: text, what is measured of it (KeyError: not yet), and the least or most."""

    text: str
    value: Callable[[Results], float]
    limit: float
    most: bool = False

    def row(self, found: Results) -> str:
        """The cells behind the text."""
        try:
            value = self.value(found)
        except KeyError as e:
            return f"{e.args[0]} is not done | "
        met = value <= self.limit if self.most else value >= self.limit
        return f"{value:.3g} | {'yes' if met else 'NO'}"


def its(found: Results, item: str, loop: str = "ours") -> float:
    """Steps a second."""
    return found[item][loop]["median"]


def best(found: Results, preset: str) -> float:
    """Of the ways that train.py has: eager or compiled."""
    return max(its(found, f"fast-{preset}-{mode}") for mode in MODES[:2])


def least_of_bare(found: Results) -> float:
    """Of the presets, eager and compiled."""
    items = [f"fast-{preset}-{mode}" for preset in PRESETS for mode in MODES[:2]]
    return min(its(found, item) / its(found, item, "bare") for item in items)


AIMS = (
    Aim("tests that need a GPU: exit code", lambda f: f["right-tests"]["exit_code"], 0, most=True),
    *(
        Aim(
            f"`--prove-resume`, {own}: exit code",
            lambda f, own=own: f[f"right-resume-{own}"]["exit_code"],
            0,
            most=True,
        )
        for own in ("fp32", "bf16", "deterministic", "compiled")
    ),
    Aim("`original` at batches of 128: it/s", lambda f: best(f, "original"), 60),
    Aim("the loop of train.py against its bare network, least", least_of_bare, 0.95),
    Aim(
        "`original` against the original's recipe in plain PyTorch",
        lambda f: best(f, "original") / its(f, "fast-recipe", "plain"),
        4,
    ),
    Aim("`mnist`, 30 epochs: seconds", lambda f: f["good-mnist"]["seconds"], 60, most=True),
    Aim("50,000 samples: seconds", lambda f: f["good-mnist-many"]["seconds"], 60, most=True),
)


def graphs(found: Results) -> list[str]:
    """The rule by which CUDA graphs are taken or left."""
    rule = (
        f"Rule: CUDA graphs are taken if they make the loop of `mnist` {GRAPHS_PAY:g} times as fast"
    )
    rule += " as compiling alone, and that of no preset slower."
    try:
        gains = {
            preset: its(found, f"fast-{preset}-graphs") / its(found, f"fast-{preset}-compiled")
            for preset in PRESETS
        }
    except KeyError as e:
        return [f"{rule} {e.args[0]} is not done."]
    taken = gains["mnist"] >= GRAPHS_PAY and min(gains.values()) >= 1
    numbers = ", ".join(f"{preset} {gain:.2f}" for preset, gain in gains.items())
    return [f"{rule} Measured: {numbers}. So: {'take' if taken else 'leave'} them."]


def speeds(found: Results) -> list[str]:
    """It/s of every loop, and the share of the peaks that the passes of ours reach."""
    peak = found.get("fast-peaks", {}).get("bf16")  # not in a rehearsal
    lines = [
        "| preset | mode | batch | ours | bare | plain | diffusers | of the convolution peak "
        "| of the matmul peak | GiB | seconds to the second step |",
        "|---" * 11 + "|",
    ]
    for item in (f"fast-{preset}-{mode}" for preset in PRESETS for mode in MODES):
        if (r := found.get(item)) is None:
            continue
        rates = [f"{its(found, item, loop):.1f}" for loop in ("ours", "bare", "plain", "diffusers")]
        work = its(found, item) * r["flops_of_a_step"]
        of = [f"{work / peak[name]:.0%}" if peak else "" for name in ("convolution", "matmul")]
        cells = [r["preset"], r["mode"], str(r["batch"]), *rates, *of]
        cells += [f"{r['memory_bytes'] / 2**30:.1f}", f"{r['ours_first_seconds']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def rest(found: Results) -> list[str]:
    """Batch sizes, samplers, first steps, and what was trained."""
    lines = []
    for preset in PRESETS[:2]:
        for size, r in found.get(f"fast-{preset}-batches", {}).items():
            rate = r["ours"]["median"]
            lines.append(
                f"* {preset}, batch {size}: {rate:.1f} it/s, {rate * int(size):,.0f} images/s"
            )
    for name, r in found.get("fast-samplers", {}).items():
        lines.append(f"* {name}: {r['median']:,.0f} images/s")
    for name, r in found.get("fast-first-step", {}).items():
        lines.append(f"* first step of {name}: {r['first step']['median']:.1f} s after typing")
    for name in ("good-mnist", "good-original"):
        if name in found:
            r = found[name]
            scores = next(iter(r["scores"].values())).items()  # of the samples; then real images
            shown = ", ".join(f"{key} {value:.4g}" for key, value in scores)
            lines.append(f"* {name}: {r['step']:,} steps in {r['seconds']:.0f} s; {shown}")
    for name, r in found.items():
        if name.startswith("good-rate"):
            loss = r["best"]["loss"] if r["best"] else float("nan")
            scaled = f"batch {r['batch']}, lr x (batch / 32)^{r['exponent']:g}"
            lines.append(f"* 30 epochs, {scaled}: held-out {loss:.5f} in {r['seconds']:.0f} s")
    return lines
