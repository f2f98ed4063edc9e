"""Speed: training, sampling and start-up, against diffusers and a plain loop, in one run.

python -m benchmarks.throughput            # everything, about 20 minutes on two cores
python -m benchmarks.throughput --quick    # one small repeat of each part, to see that it works

Prints tables; writes results/throughput.json and results/throughput.png.
"""

import argparse
import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import measure, sampling, scaling
from benchmarks.baselines import LOOPS, Task, unet_of_diffusers
from benchmarks.workers import workers
from config import Config
from training.build import build
from utils.devices import pick_device

RESULTS = Path(__file__).parent / "results"
REPEATS = {"original": 3, "mnist": 7}
GROUPS = (("ours", "checkpointed", "bare"), ("plain", "diffusers"))  # that share a process
SECONDS = 2.0  # of each repeat, at least
Row = dict[str, Any]


def main() -> None:
    """Measure, print the table, write JSON and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="see that it works; numbers are rough")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--data-root", help="where MNIST is; else start-up is timed with digits")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder [%(default)s]")
    flags = parser.parse_args()
    device = pick_device(flags.device)
    results: dict[str, Any] = {"hardware": measure.hardware(device), "quick": flags.quick}
    results["training"] = [
        row
        for preset in (("mnist",) if flags.quick else REPEATS)
        for precision in measure.DTYPES
        for row in training(preset, precision, device, flags.quick)
    ]
    results["memory"] = [] if flags.quick else memory(device)
    results["networks"] = {
        f"{preset}, {loop}": network(preset, loop) for preset in REPEATS for loop in NETWORKS
    }
    data = data_flags(flags.data_root)
    results["sampling"] = sample(device, flags.quick, data)
    results["start_up"] = measure.start_up(str(device), data)
    measure.write(flags.out / "throughput.json", results)
    print(table(results))
    if not flags.quick:
        from benchmarks.plot import plot_speed

        plot_speed(results, flags.out / "throughput.png")


def network(preset: str, loop: str) -> dict[str, int]:
    """Parameters, and FLOPs of one image forwards."""
    config = Task(preset, "fp32", torch.device("cpu")).config
    model, x = NETWORKS[loop](config)
    t, y = torch.ones(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        work = measure.flops(lambda: model(x, t, y if config.model.num_classes else None))
    return {"parameters": sum(p.numel() for p in model.parameters()), "flops": work}


def our_network(config: Config) -> tuple[nn.Module, Tensor]:
    """And an image for it."""
    return build(config)[0], torch.zeros(1, *config.image_shape)


def their_network(config: Config) -> tuple[nn.Module, Tensor]:
    """Which is given the image already in patches."""
    x = F.pixel_unshuffle(our_network(config)[1], config.model.patch_size)
    return unet_of_diffusers(config), x


NETWORKS = {"ours": our_network, "diffusers": their_network}


def data_flags(root: str | None) -> list[str]:
    """MNIST where its folder was named, else drawn digits."""
    return ["--dataset", "mnist", "--data-root", root] if root else ["--dataset", "digits"]


def training(preset: str, precision: str, device: torch.device, quick: bool) -> list[Row]:
    """Images per second of every loop, and for ours the parts of a step.

    The peaks are measured before and after, since the machine may be shared.
    """
    print(f"{preset} {precision}", file=sys.stderr, flush=True)
    task, repeats = Task(preset, precision, device), 2 if quick else REPEATS[preset]
    with workers(GROUPS, task) as by_name:
        before = by_name["ours"].ask("peaks", precision)
        bare = by_name["bare"]
        bare.ask("run", "bare", 2)
        once = measure.seconds(lambda: bare.ask("run", "bare", 1), device)
        steps = 2 if quick else math.ceil(SECONDS / once)
        work = {name: steps * by_name[name].ask("flops", name) for name in ("bare", "diffusers")}
        actions = {name: lambda name=name: by_name[name].ask("run", name, steps) for name in LOOPS}
        times = measure.interleaved(actions, repeats, device)
        parts = by_name["ours"].ask("parts", "ours", steps, repeats)
        after = by_name["ours"].ask("peaks", precision)
    peak = {name: max(before[name], after[name]) for name in before}
    images, rows = steps * task.config.train.batch_size, []
    for name, own in times.items():
        median = statistics.median(own)
        rate = work["diffusers" if name == "diffusers" else "bare"] / median
        row = {"preset": preset, "precision": precision, "loop": name, "steps": steps}
        row |= {"of_bare": statistics.median(times["bare"]) / median, "its": steps / median}
        row |= {f"of_{peak_name}": rate / most for peak_name, most in peak.items()}
        rows.append(row | {"peaks": peak} | measure.spread([images / t for t in own]))
    rows[0]["parts"] = parts
    return rows


def memory(device: torch.device) -> list[dict[str, Any]]:
    """Peak bytes of two steps of the original preset, each in a process of its own."""
    rows = []
    for precision in measure.DTYPES:
        for loop, flags in (("ours", ()), ("ours", ("checkpoint",)), ("diffusers", ())):
            print(f"memory {precision} {loop} {flags}", file=sys.stderr, flush=True)
            most = measure.peak_memory(loop, "original", precision, str(device), *flags)
            name = " ".join([loop, *flags])
            rows.append({"preset": "original", "precision": precision, "loop": name, "bytes": most})
    return rows


def sample(device: torch.device, quick: bool, data: list[str]) -> dict[str, Any]:
    """Seconds to 64 images in a running process, and from typing to the picture on the disk."""
    print("sampling", file=sys.stderr, flush=True)
    task, repeats = Task("mnist", "fp32", device), 1 if quick else 5  # as sample.py draws
    warm = measure.interleaved(sampling.grids(task), repeats, device)
    with tempfile.TemporaryDirectory() as folder:
        ways = sampling.from_typing(Path(folder), str(device), data)
        cold = measure.interleaved(ways, min(repeats, 3), torch.device("cpu"))
    spreads = ({name: measure.spread(own) for name, own in times.items()} for times in (warm, cold))
    return {"steps": sampling.STEPS, **dict(zip(("warm", "cold"), spreads, strict=True))}


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    h = results["hardware"]
    lines = [
        f"{h['cpu']}, {h['cores']} cores, GPU {h['gpu']}, torch {h['torch']}, "
        f"diffusers {h['diffusers']}, commit {h['commit']}, {h['date']}",
        "",
        "| preset | format | loop | images/s (low - high) | it/s | of bare "
        "| of the convolution peak | of the matmul peak | against diffusers |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    theirs = {
        (r["preset"], r["precision"]): r["median"]
        for r in results["training"]
        if r["loop"] == "diffusers"
    }
    for r in results["training"]:
        shares = f"{r['of_bare']:.0%} | {r['of_convolution']:.0%} | {r['of_matmul']:.0%}"
        ratio = r["median"] / theirs[r["preset"], r["precision"]]
        rate = f"{r['median']:.1f} ({r['low']:.1f} - {r['high']:.1f})"
        speed = f"{rate} | {r['its']:.2f} | {shares} | {ratio:.2f}"
        lines.append(f"| {r['preset']} | {r['precision']} | {r['loop']} | {speed} |")
    nets = results["networks"].items()
    lines += ["", "| network | parameters | GFLOP forward, an image |", "|---|---|---|"]
    lines += [f"| {name} | {n['parameters']:,} | {n['flops'] / 1e9:.3f} |" for name, n in nets]
    s = results["sampling"]
    head = "| 64 images | steps | images/s | seconds | seconds from typing to the file |"
    lines += ["", head, "|---" * 5 + "|"]
    for name, t in s["warm"].items():
        cold = s["cold"][name]["median"]
        rate = f"{64 / t['median']:.0f} | {t['median']:.2f} | {cold:.1f}"
        lines.append(f"| {name} | {s['steps'][name.split()[1]]} | {rate} |")
    lines += ["", "| from typing to | seconds |", "|---|---|"]
    lines += [f"| {name} | {t['median']:.1f} |" for name, t in results["start_up"].items()]
    lines += ["", *memory_table(results["memory"]), "", *parts_table(results["training"])]
    if any(row["preset"] == "original" for row in results["training"]):
        lines += [
            "",
            *scaling.table(
                results["training"], results["networks"]["original, ours"]["parameters"]
            ),
        ]
    return "\n".join(lines)


def memory_table(rows: list[dict[str, Any]]) -> list[str]:
    """Peak memory as Markdown."""
    lines = ["| original, batch 128 | format | peak memory |", "|---|---|---|"]
    return lines + [
        f"| {r['loop']} | {r['precision']} | {r['bytes'] / 2**30:.1f} GiB |" for r in rows
    ]


def parts_table(training: list[dict[str, Any]]) -> list[str]:
    """Where a step of ours goes."""
    rows = [row for row in training if "parts" in row]
    names = list(dict.fromkeys(name for row in rows for name in row["parts"]))
    lines = ["| ms of a step | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for row in rows:
        times = [f"{1000 * row['parts'].get(name, 0):.1f}" for name in names]
        lines.append(f"| {row['preset']} {row['precision']} | {' | '.join(times)} |")
    return lines


if __name__ == "__main__":
    main()
