"""Many images: speed and peak memory of sample.py beside diffusers, from the command to the file.

python -m benchmarks.sampling_at_scale --ckpt latest     # 500 and 2,000 images; minutes
python -m benchmarks.sampling_at_scale --ckpt latest --num 50000 --only sample.py

DDIM of as many network evaluations everywhere, in batches of 100, on the CPU; every way is a
process of its own. Writes benchmarks/results/sampling_at_scale.json. The network must be that of
the default preset; how good it is does not change the time.
"""

import argparse
import json
import re
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from benchmarks.baselines import Task, unet_of_diffusers
from models import UNet
from training.trained import RUN_ROOT
from utils import checkpoint

STEPS, KINDS = 20, ("npz", "png")
OWN = Path(__file__).parent / "results" / "sampling_at_scale.json"
RUN = """
import sys
import {module} as script
if code := script.main(sys.argv[1:]):
    sys.exit(code)
with open("/proc/self/status") as file:
    print(file.read())
"""
Row = dict[str, Any]
Way = tuple[str, list[str]]  # a module, and the arguments of its main


def ways(ckpt: Path, where: Path) -> dict[str, Way]:
    """Every way to draw NUM images of this checkpoint into this folder."""
    state = checkpoint.load(ckpt)
    ours = UNet(**state["config"]["model"])
    ours.load_state_dict(state["model"])
    theirs = unet_of_diffusers(
        Task("mnist", "fp32", torch.device("cpu")).config.override(num_classes=0)
    )
    arguments = {k: v for k, v in theirs.config.items() if not k.startswith("_")}
    networks = {"scheduler": (ours, state["config"]["model"]), "pipeline": (theirs, arguments)}
    draw = ["--ckpt", str(ckpt), "--num", "NUM", "--device", "cpu", "--out", str(where / "ours")]
    draw += ["--sampler", "ddim", "--steps", str(STEPS), "--guidance", "1", "--overwrite"]
    found = {f"sample.py --save {kind}": ("sample", [*draw, "--save", kind]) for kind in KINDS}
    for kind, (model, own) in networks.items():
        path = where / f"{kind}.pt"
        torch.save({"arguments": dict(own), "weights": model.state_dict()}, path)
        words = [kind, str(path), "NUM", str(STEPS), str(where / "theirs.npz")]
        found[f"diffusers, {kind}"] = ("benchmarks.many_diffusers", words)
    return found


def measured(way: Way, num: int) -> Row:
    """Seconds and CPU seconds from the command to its end, and bytes of memory at most."""
    module, words = way
    code = RUN.format(module=module)
    command = [sys.executable, "-c", code, *(str(num) if w == "NUM" else w for w in words)]
    began, before = time.monotonic(), cpu_seconds()
    printed = measure.output(command)
    times = {"seconds": time.monotonic() - began, "CPU seconds": cpu_seconds() - before}
    peak = 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", printed)[1])
    return {"num": num, **times, "peak bytes": peak}


def cpu_seconds() -> float:
    """Of all processes that this one waited for: what else the machine does is not in it."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    head = "| way | images | images/s | images per CPU second | seconds | peak memory |"
    lines = [head, "|---" * 6 + "|"]
    for row in rows:
        peak = f"{row['peak bytes'] / 2**20:.0f} MiB"
        rates = [row["num"] / row[name] for name in ("seconds", "CPU seconds")]
        speed = f"{rates[0]:.1f} | {rates[1]:.1f} | {row['seconds']:.1f}"
        lines.append(f"| {row['way']} | {row['num']:,} | {speed} | {peak} |")
    return "\n".join(lines)


def main() -> None:
    """Measure each way in turn, and write each as soon as it is known."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", default="latest", help="[%(default)s]")
    parser.add_argument("--run-root", type=Path, default=RUN_ROOT, help="[%(default)s]")
    parser.add_argument("--num", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--only", default="", help="ways whose name begins with this [all]")
    parser.add_argument("--out", type=Path, default=OWN, help="[%(default)s]")
    flags = parser.parse_args()
    if sys.platform != "linux":
        parser.error("memory is measured on Linux alone")
    found = json.loads(flags.out.read_text()) if flags.out.exists() else {"rows": []}
    known = {(row["way"], row["num"]): row for row in found["rows"]}
    hardware = measure.hardware(torch.device("cpu"))
    ckpt = checkpoint.find(flags.ckpt, flags.run_root).resolve()
    with tempfile.TemporaryDirectory() as folder:
        for num in flags.num:
            for name, way in ways(ckpt, Path(folder)).items():
                if name.startswith(flags.only):
                    row = measured(way, num)
                    known[name, num] = {"way": name, **row, "steps": STEPS, "hardware": hardware}
                    measure.write(flags.out, {"rows": list(known.values())})
    print(table(list(known.values())))


if __name__ == "__main__":
    main()
