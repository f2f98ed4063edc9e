"""Speed: training, sampling and start-up, against diffusers and a plain loop, in one run.

python -m benchmarks.throughput            # everything, about 20 minutes on two cores
python -m benchmarks.throughput --quick    # one small repeat of each part, to see that it works

Writes a table, results/throughput.json and results/throughput.png.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import measure, sampling, scaling, streaming
from benchmarks.contenders import CONTENDERS, Task, unet_of_diffusers
from config import Config
from prepare import build
from utils.devices import pick_device

RESULTS = Path(__file__).parent / "results"
PRESETS = {"original": (1, 3), "mnist": (40, 7)}  # steps a repeat, repeats
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


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
    results["peaks"] = {
        name: measure.peaks(device, dtype, 1 if flags.quick else 5)
        for name, dtype in DTYPES.items()
    }
    results["training"] = [
        row
        for preset in (("mnist",) if flags.quick else PRESETS)
        for precision in DTYPES
        for row in training(preset, precision, device, flags.quick, results["peaks"][precision])
    ]
    results["memory"] = [] if flags.quick else memory(device)
    results["networks"] = {
        f"{preset}, {loop}": network(preset, loop) for preset in PRESETS for loop in NETWORKS
    }
    results["streaming"] = stream(device, flags.quick)
    results["sampling"] = sample(device, flags.quick)
    results["start_up"] = measure.start_up(str(device), data_flags(flags.data_root))
    measure.write(flags.out / "throughput.json", results)
    print(table(results))
    if not flags.quick:
        from benchmarks.plot import plot_speed

        plot_speed(results, flags.out / "throughput.png")


def network(preset: str, loop: str) -> dict[str, int]:
    """Parameters, and FLOPs of one image forwards."""
    config = Task(preset, "fp32", torch.device("cpu")).config
    model, x = NETWORKS[loop](preset, config)
    t, y = torch.ones(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        work = measure.flops(lambda: model(x, t, y if config.model.num_classes else None))
    return {"parameters": sum(p.numel() for p in model.parameters()), "flops": work}


def our_network(_: str, config: Config) -> tuple[nn.Module, Tensor]:
    return build(config)[0], torch.zeros(1, 1, *[config.data.image_size] * 2)


def their_network(preset: str, config: Config) -> tuple[nn.Module, Tensor]:
    """Which is given the image already in patches."""
    x = F.pixel_unshuffle(our_network(preset, config)[1], config.model.patch_size)
    return unet_of_diffusers(preset), x


NETWORKS = {"ours": our_network, "diffusers": their_network}


def data_flags(root: str | None) -> list[str]:
    return ["--dataset", "mnist", "--data-root", root] if root else ["--dataset", "digits"]


def training(
    preset: str, precision: str, device: torch.device, quick: bool, peak: dict[str, float]
) -> list[dict[str, Any]]:
    """Images per second of every contender, and for ours the parts of a step."""
    task = Task(preset, precision, device)
    steps, repeats = (2, 2) if quick else PRESETS[preset]
    images = steps * task.config.train.batch_size
    runs = {name: make(task) for name, make in CONTENDERS.items()}
    print(f"{preset} {precision}", file=sys.stderr, flush=True)
    work = measure.flops(lambda: runs["bare"](1)) * steps
    actions = {name: lambda run=run: run(steps) for name, run in runs.items()}
    rows = []
    for name, times in measure.interleaved(actions, repeats, device).items():
        rate = measure.spread([images / t for t in times])
        share = work / statistics.median(times) / max(peak.values())
        rows.append({"preset": preset, "precision": precision, "loop": name, **rate})
        if name != "diffusers":  # its network does a little more or less
            rows[-1]["of_peak"] = share
    with measure.timed_parts(device) as spent:
        whole = measure.seconds(lambda: runs["ours"](steps), device)
    spent["data, log, bar"] = whole - spent["whole step"]
    rows[0]["parts"] = {name: spent[name] / steps for name in spent}
    return rows


def memory(device: torch.device) -> list[dict[str, Any]]:
    """Peak bytes of two steps of the original preset, each in a process of its own."""
    rows = []
    for precision in DTYPES:
        for loop, flags in (("ours", ()), ("ours", ("checkpoint",)), ("diffusers", ())):
            print(f"memory {precision} {loop} {flags}", file=sys.stderr, flush=True)
            most = measure.peak_memory(loop, "original", precision, str(device), *flags)
            name = " ".join([loop, *flags])
            rows.append({"preset": "original", "precision": precision, "loop": name, "bytes": most})
    return rows


def stream(device: torch.device, quick: bool) -> dict[str, Any]:
    """Images per second at 64 x 64 from a folder of JPEGs and from memory."""
    print("streaming", file=sys.stderr, flush=True)
    batches, repeats = (2, 1) if quick else (14, 5)
    with tempfile.TemporaryDirectory() as folder:
        runs = streaming.contenders(Path(folder), device, batches)
        actions = {name: lambda run=run: run(batches) for name, run in runs.items()}
        times = measure.interleaved(actions, repeats, device)
        images = batches * Task("mnist", "auto", device).config.train.batch_size
        rates = {name: measure.spread([images / t for t in times[name]]) for name in times}
        return rates | {"decoded by one process": streaming.decoding_rate(Path(folder))}


def sample(device: torch.device, quick: bool) -> dict[str, Any]:
    """Seconds to 64 images, and of a process of its own in which diffusers draws and saves them."""
    print("sampling", file=sys.stderr, flush=True)
    task = Task("mnist", "fp32", device)
    times = measure.interleaved(sampling.grids(task), 1 if quick else 5, device)
    warm = {name: measure.spread(values) for name, values in times.items()}
    with tempfile.TemporaryDirectory() as folder:
        cold = {}
        for name in ("ddpm",) if quick else sampling.STEPS:
            path = str(Path(folder, f"{name}.png"))
            command = [sys.executable, "-m", "benchmarks.sampling", name, str(device), path]
            cold[f"diffusers {name}"] = measure.seconds(lambda c=command: measure.output(c), device)
    return {"steps": sampling.STEPS, "warm_seconds": warm, "cold_seconds": cold}


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    h = results["hardware"]
    lines = [
        f"{h['cpu']}, {h['cores']} cores, GPU {h['gpu']}, torch {h['torch']}, "
        f"diffusers {h['diffusers']}; peak in GFLOP/s: "
        + ", ".join(
            f"{dtype} {name} {rate / 1e9:.0f}"
            for dtype, rates in results["peaks"].items()
            for name, rate in rates.items()
        ),
        "",
        "| preset | format | loop | images/s (low - high) | of the peak | against diffusers |",
        "|---|---|---|---|---|---|",
    ]
    theirs = {
        (r["preset"], r["precision"]): r["median"]
        for r in results["training"]
        if r["loop"] == "diffusers"
    }
    for r in results["training"]:
        share = f"{r['of_peak']:.0%}" if "of_peak" in r else ""
        ratio = r["median"] / theirs[r["preset"], r["precision"]]
        rate = f"{r['median']:.1f} ({r['low']:.1f} - {r['high']:.1f})"
        lines.append(
            f"| {r['preset']} | {r['precision']} | {r['loop']} | {rate} | {share} | {ratio:.2f} |"
        )
    nets = results["networks"].items()
    lines += ["", "| network | parameters | GFLOP forward, an image |", "|---|---|---|"]
    lines += [f"| {name} | {n['parameters']:,} | {n['flops'] / 1e9:.3f} |" for name, n in nets]
    lines += ["", "| 64 images | steps | seconds warm | seconds cold |", "|---|---|---|---|"]
    s = results["sampling"]
    for name, t in s["warm_seconds"].items():
        cold = f"{s['cold_seconds'][name]:.1f}" if name in s["cold_seconds"] else ""
        lines.append(f"| {name} | {s['steps'][name.split()[1]]} | {t['median']:.2f} | {cold} |")
    lines += ["", "| from typing to | seconds |", "|---|---|"]
    lines += [f"| {name} | {t:.1f} |" for name, t in results["start_up"].items()]
    rates = results["streaming"]
    lines += [
        "",
        f"64 x 64 from a folder: {rates['folder']['median']:.0f} images/s, from memory "
        f"{rates['memory']['median']:.0f}; one process alone decodes "
        f"{rates['decoded by one process']:.0f}",
    ]
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
