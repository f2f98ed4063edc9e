"""The pictures of the benchmarks."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.trials import Score

COLOURS = {"ours": "#1b6ca8", "bare": "#9ec9e2", "plain": "#c8b273", "diffusers": "#b5533c"}


def plot_speed(results: dict[str, Any], path: Path) -> None:
    """Images per second of every loop, by preset and number format, with their spread."""
    presets = list(dict.fromkeys(row["preset"] for row in results["training"]))
    figure, axes = plt.subplots(1, len(presets), figsize=(5 * len(presets), 3.4), squeeze=False)
    for ax, preset in zip(axes[0], presets, strict=True):
        rows = [row for row in results["training"] if row["preset"] == preset]
        formats = list(dict.fromkeys(row["precision"] for row in rows))
        for i, (loop, colour) in enumerate(COLOURS.items()):
            own = [row for row in rows if row["loop"] == loop]
            at = [formats.index(row["precision"]) + 0.2 * i for row in own]
            low = [row["median"] - row["low"] for row in own]
            high = [row["high"] - row["median"] for row in own]
            heights = [row["median"] for row in own]
            ax.bar(at, heights, 0.18, color=colour, label=loop, yerr=[low, high], capsize=2)
        ax.set_xticks([i + 0.3 for i in range(len(formats))], formats)
        ax.set_title(f"--preset {preset}")
        ax.set_ylabel("training images/s")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(frameon=False)
    h = results["hardware"]
    figure.text(0.01, 0.01, f"{h['cpu']}, {h['cores']} cores; torch {h['torch']}", fontsize=7)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=110)


def plot_quality(rows: list[Score], path: Path) -> None:
    """Fréchet distance against minutes of training; dashed, that of real images."""
    figure, ax = plt.subplots(figsize=(8, 3.8))
    curves: dict[tuple[str, str, int], list[Score]] = {}
    for row in rows:
        curves.setdefault((row.name, row.sample_flags, row.seed), []).append(row)
    for (name, sampling, seed), own in curves.items():
        own = sorted(own, key=lambda row: row.minutes)
        label = ", ".join(filter(None, (name, sampling, f"seed {seed}" if seed else "")))
        ax.loglog([r.minutes for r in own], [r.fid for r in own], "o-", label=label)
    ax.axhline(min(row.floor for row in rows), ls="--", c="grey", label="real images")
    minutes = sorted({row.minutes for row in rows})
    ax.set_xticks(minutes, [f"{m:g}" for m in minutes])
    ax.minorticks_off()
    ax.set_xlabel(f"minutes of training; CPU cores: {rows[0].cores}")
    ax.set_ylabel("fid_classifier")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def plot_grids(folder: Path, pictures: dict[tuple[str, float], Path]) -> None:
    """The samples of every method (down) after so many minutes (across)."""
    if not pictures:
        return
    names = list(dict.fromkeys(name for name, _ in pictures))
    minutes = sorted({m for _, m in pictures})
    size = (2.6 * len(minutes), 2.7 * len(names))
    figure, axes = plt.subplots(len(names), len(minutes), figsize=size, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for (name, m), path in pictures.items():
        ax = axes[names.index(name)][minutes.index(m)]
        ax.imshow(plt.imread(path), cmap="gray", vmin=0, vmax=1)
        ax.set_title(f"{name}, {m:g} min", fontsize=8)
    figure.tight_layout(pad=0.3, h_pad=1.5)
    figure.savefig(folder / "time_to_quality_grids.png", dpi=110)
