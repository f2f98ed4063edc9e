"""throughput.json as one picture."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"ours": "#1b6ca8", "bare": "#9ec9e2", "plain": "#c8b273", "diffusers": "#b5533c"}


def plot(results: dict[str, Any], path: Path) -> None:
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
